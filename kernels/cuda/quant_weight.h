// Packs weights that stay quantised: see QuantFormat in kernels.h.
//
// Codes and what reads them lie in blocks of 64 packed columns. Where each run of 16 columns from a shard's
// begin on is of one group (or block of 32, or block of scales), packed columns are the matrix's own, in
// order: then a product has the bits of the widened weight's. Else (an act order, cuts inside of groups) a
// shard's columns are sorted by group and each group is filled up to a multiple of 16 columns: another order
// of sums, which depends on the shard's own columns only.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "kernels/cuda/kernels.h"
#include "kernels/ops.h"

namespace phalanx::cuda {

// Appends the segments of `size` packed columns from column `begin` of x on: as few as are allowed, alike but
// for the last.
void AppendSegments(int64_t begin, int64_t size, std::vector<GemmSegment>* segments);

class QuantPacking {
 public:
  // The file's types that can stay.
  static std::vector<DType> KeptTypes();
  // Nullopt where the pieces cannot stay quantised together: several types, 4-bit ones with fp32 scales or
  // with act orders that differ. `params` must live as long as the result.
  static std::optional<QuantPacking> Plan(const PackWeightParams& params);

  const QuantFormat& format() const { return format_; }
  const std::vector<GemmSegment>& segments() const { return segments_; }
  const std::vector<int32_t>& shard_begin() const { return shard_begin_; }
  // Of each packed column, the column of x; -1 where it is none. Empty: see the segments.
  const std::vector<int32_t>& gathered() const { return gathered_; }

  // The blocks of a tile's 16 rows. False where an element is a NaN, which the format has no code for.
  bool PackTile(int tile, std::vector<uint8_t>* out);

 private:
  struct Row {
    const WeightSource* source = nullptr;  // null: beyond the last
    int64_t row = 0;                       // of the stored matrix
  };

  explicit QuantPacking(const PackWeightParams& params) : params_(&params) {}
  bool PlaceColumns();
  void ChooseFormat();
  void FindRows(int tile, Row (&rows)[kGemmRowTile]) const;
  // Whether the rows of each tile lie in one block of scales.
  bool RowsAreAlike() const;
  // The column of the matrix that stands for run `slot` of a block; -1 if it has none.
  int64_t ColumnOf(int64_t block, int slot) const;

  const PackWeightParams* params_;
  DType dtype_ = DType::kF32;
  QuantFormat format_;
  std::vector<GemmSegment> segments_;
  std::vector<int32_t> shard_begin_, columns_, gathered_;
  std::vector<uint8_t> codes_;  // of a tile
};

}  // namespace phalanx::cuda
