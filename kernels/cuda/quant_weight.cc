#include "kernels/cuda/quant_weight.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <map>
#include <numeric>

#include "kernels/numeric.h"

namespace phalanx::cuda {
namespace {

constexpr int64_t kUnit = 16;  // columns of one group at least

int64_t RoundUp(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

bool IsInt4(DType dtype) { return dtype == DType::kAwq || dtype == DType::kGptq; }

template <typename T>
T Load(const void* data, int64_t index) {
  T v;
  std::memcpy(&v, static_cast<const uint8_t*>(data) + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return v;
}

// Of the elements of a row that one scale reads: those whose columns have one key.
int64_t GroupOf(const WeightSource& s, int64_t column) {
  if (IsInt4(s.dtype)) {
    return s.groups.group_of != nullptr ? Load<int32_t>(s.groups.group_of, column)
                                        : column / s.groups.group_size;
  }
  if (s.dtype != DType::kF8E4M3) return column / BlockElements(s.dtype);
  return s.scales.data == nullptr ? 0 : column / s.scales.block_cols;
}

float ScaleOf(const WeightSource& s, int64_t row, int64_t column) {
  if (s.scales.data == nullptr) return 1.0f;
  const int64_t at = row / s.scales.block_rows * s.scales.stride + column / s.scales.block_cols;
  if (s.scales.dtype == DType::kF32) return Load<float>(s.scales.data, at);
  const auto half = Load<uint16_t>(s.scales.data, at);
  return s.scales.dtype == DType::kF16 ? FloatFromF16(half) : FloatFromBf16(half);
}

constexpr int kAwqShift[8] = {0, 16, 4, 20, 8, 24, 12, 28};

// 4 bits of a word of 8 rows.
uint32_t NumberOfRow(bool awq, uint32_t word, int64_t row) {
  return word >> (awq ? kAwqShift[row % 8] : static_cast<int>(row % 8) * 4) & 15;
}

// What reads the element's code, in QuantFormat's form: up to 4 bytes.
uint32_t MetaOf(const WeightSource& s, int64_t row, int64_t column) {
  if (s.dtype == DType::kF8E4M3) return std::bit_cast<uint32_t>(ScaleOf(s, row, column));
  if (IsInt4(s.dtype)) {
    const int64_t group = GroupOf(s, column);
    const auto word = Load<uint32_t>(s.groups.zeros, group * (s.stored_rows / 8) + row / 8);
    const uint32_t zero =
        NumberOfRow(s.dtype == DType::kAwq, word, row) + static_cast<uint32_t>(s.groups.zero_offset);
    return Load<uint16_t>(s.groups.scales, group * s.stored_rows + row) | zero << 16;
  }
  const auto* block = static_cast<const uint8_t*>(s.data) + row * RowBytes(s.dtype, s.cols) +
                      column / BlockElements(s.dtype) * BlockBytes(s.dtype);
  return s.dtype == DType::kQ4_1 ? Load<uint32_t>(block, 0) : Load<uint16_t>(block, 0);
}

// Codes of columns [begin, end) of a row, one a byte. False at a NaN.
bool ReadCodes(const WeightSource& s, int64_t row, int64_t begin, int64_t end, uint8_t* out) {
  if (IsInt4(s.dtype)) {
    const bool awq = s.dtype == DType::kAwq;
    const auto* words = static_cast<const uint8_t*>(s.data);
    for (int64_t c = begin; c < end; ++c) {
      const uint32_t number =
          awq ? NumberOfRow(true, Load<uint32_t>(words, c * (s.stored_rows / 8) + row / 8), row)
              : Load<uint32_t>(words, c / 8 * s.stored_rows + row) >> (c % 8 * 4) & 15;
      *out++ = static_cast<uint8_t>(number);
    }
    return true;
  }
  const auto* bytes = static_cast<const uint8_t*>(s.data) + row * RowBytes(s.dtype, s.cols);
  if (s.dtype == DType::kF8E4M3) {
    std::memcpy(out, bytes + begin, static_cast<size_t>(end - begin));
    return std::none_of(out, out + (end - begin), [](uint8_t code) { return (code & 0x7f) == 0x7f; });
  }
  const int64_t block_bytes = BlockBytes(s.dtype), head = s.dtype == DType::kQ4_1 ? 4 : 2;
  for (int64_t c = begin; c < end; ++c) {
    const uint8_t* q = bytes + c / 32 * block_bytes + head;
    const int64_t j = c % 32;
    if (s.dtype == DType::kQ8_0) {
      *out++ = q[j] ^ 0x80;
    } else {
      *out++ = j < 16 ? q[j] & 15 : q[j - 16] >> 4;
    }
  }
  return true;
}

}  // namespace

void AppendSegments(int64_t begin, int64_t size, std::vector<GemmSegment>* segments) {
  if (size == 0) return;
  const int64_t count = (size + kGemmSegment - 1) / kGemmSegment;
  const int64_t step = RoundUp((size + count - 1) / count, kGemmBlock);
  for (int64_t at = 0; at < size; at += step) {
    GemmSegment s;
    s.first_block = segments->empty() ? 0 : segments->back().first_block + segments->back().blocks;
    s.x_begin = static_cast<int32_t>(begin + at);
    s.x_cols = static_cast<int32_t>(std::min(step, size - at));
    s.blocks = static_cast<int32_t>(RoundUp(s.x_cols, kGemmBlock) / kGemmBlock);
    segments->push_back(s);
  }
}

std::vector<DType> QuantPacking::KeptTypes() {
  return {DType::kQ8_0, DType::kQ4_0, DType::kQ4_1, DType::kF8E4M3, DType::kAwq, DType::kGptq};
}

std::optional<QuantPacking> QuantPacking::Plan(const PackWeightParams& p) {
  const std::vector<DType> kept = KeptTypes();
  const WeightSource& first = p.pieces[0].source;
  if (std::find(kept.begin(), kept.end(), first.dtype) == kept.end()) return std::nullopt;
  for (const WeightPiece& piece : p.pieces) {
    const WeightSource& s = piece.source;
    if (s.dtype != first.dtype) return std::nullopt;
    if (!IsInt4(s.dtype)) continue;
    if (s.groups.scales_dtype == DType::kF32 || s.groups.scales_dtype != first.groups.scales_dtype) {
      return std::nullopt;
    }
  }
  QuantPacking plan(p);
  plan.dtype_ = first.dtype;
  if (!plan.PlaceColumns()) return std::nullopt;
  plan.ChooseFormat();
  return plan;
}

bool QuantPacking::PlaceColumns() {
  const PackWeightParams& p = *params_;
  // Groups of all pieces at once: columns with one number are of one group in each of them.
  const int64_t k = p.cols.size();
  std::vector<int64_t> key(static_cast<size_t>(k));
  std::map<std::vector<int64_t>, int64_t> numbers;
  std::vector<int64_t> most;  // groups of each piece
  for (const WeightPiece& piece : p.pieces) {
    std::map<int64_t, bool> seen;
    for (int64_t c = 0; c < k; ++c) seen[GroupOf(piece.source, p.cols.begin + c)] = true;
    most.push_back(static_cast<int64_t>(seen.size()));
  }
  std::vector<int64_t> groups(p.pieces.size());
  for (int64_t c = 0; c < k; ++c) {
    for (size_t i = 0; i < groups.size(); ++i) groups[i] = GroupOf(p.pieces[i].source, p.cols.begin + c);
    key[static_cast<size_t>(c)] =
        numbers.try_emplace(groups, static_cast<int64_t>(numbers.size())).first->second;
  }
  std::vector<int64_t> cuts = p.shard_cuts;
  if (cuts.empty()) cuts = {p.cols.begin, p.cols.end};
  bool gathers = false;
  shard_begin_ = {0};
  for (size_t i = 1; i < cuts.size(); ++i) {
    const int64_t begin = cuts[i - 1] - p.cols.begin, end = cuts[i] - p.cols.begin;
    bool natural = true;
    for (int64_t c = begin; c < end; ++c) {
      natural &= key[static_cast<size_t>(c)] == key[static_cast<size_t>(c - (c - begin) % kUnit)];
    }
    std::vector<int32_t> order(static_cast<size_t>(end - begin));
    std::iota(order.begin(), order.end(), static_cast<int32_t>(begin));
    if (!natural) {
      // Pieces that disagree would have groups of next to nothing.
      if (std::any_of(most.begin(), most.end(),
                      [&](int64_t n) { return n != static_cast<int64_t>(numbers.size()); })) {
        return false;
      }
      gathers = true;
      const WeightSource& s = p.pieces[0].source;
      std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
        return GroupOf(s, p.cols.begin + a) < GroupOf(s, p.cols.begin + b);
      });
      std::vector<int32_t> padded;
      for (size_t j = 0; j < order.size(); ++j) {
        if (j > 0 && key[static_cast<size_t>(order[j])] != key[static_cast<size_t>(order[j - 1])]) {
          padded.resize(static_cast<size_t>(RoundUp(static_cast<int64_t>(padded.size()), kUnit)), -1);
        }
        padded.push_back(order[j]);
      }
      order = std::move(padded);
    }
    const size_t first = segments_.size();
    AppendSegments(begin, static_cast<int64_t>(order.size()), &segments_);
    for (size_t s = first; s < segments_.size(); ++s) {
      const GemmSegment& segment = segments_[s];
      const auto at = static_cast<size_t>(segment.x_begin - begin);
      columns_.resize(static_cast<size_t>(segment.first_block) * kGemmBlock, -1);
      columns_.insert(columns_.end(), order.begin() + static_cast<int64_t>(at),
                      order.begin() + static_cast<int64_t>(at) + segment.x_cols);
    }
    columns_.resize(static_cast<size_t>(RoundUp(static_cast<int64_t>(columns_.size()), kGemmBlock)), -1);
    shard_begin_.push_back(static_cast<int32_t>(segments_.size()));
  }
  if (gathers) gathered_ = columns_;
  // The longest runs of one group that all columns allow.
  format_.slot_shift = 0;
  for (size_t first = 0; first < columns_.size(); first += kGemmBlock) {
    for (size_t c = 0; c < kGemmBlock; ++c) {
      while (format_.slot_shift < 2) {
        const size_t run = static_cast<size_t>(kGemmBlock) >> format_.slot_shift,
                     begin = first + c / run * run;
        if (columns_[first + c] < 0 || columns_[begin] < 0 ||
            key[static_cast<size_t>(columns_[first + c])] == key[static_cast<size_t>(columns_[begin])]) {
          break;
        }
        ++format_.slot_shift;
      }
    }
  }
  return true;
}

void QuantPacking::ChooseFormat() {
  const bool float8 = dtype_ == DType::kF8E4M3, int4 = IsInt4(dtype_);
  format_.bits = float8 || dtype_ == DType::kQ8_0 ? 8 : 4;
  format_.meta = float8                                                         ? QuantMeta::kF32
                 : dtype_ == DType::kQ4_1                                       ? QuantMeta::kF16F16
                 : !int4                                                        ? QuantMeta::kF16
                 : params_->pieces[0].source.groups.scales_dtype == DType::kF16 ? QuantMeta::kF16Zero
                                                                                : QuantMeta::kBf16Zero;
  format_.meta_bytes = format_.meta == QuantMeta::kF16 ? 2 : 4;
  format_.meta_rows = kGemmRowTile;
  if (float8 && RowsAreAlike()) {
    format_.meta_rows = 1;
    format_.slot_shift = 2;
  }
  const int metas = (format_.meta_rows * format_.meta_bytes) << format_.slot_shift;
  format_.meta_shift = std::countr_zero(static_cast<unsigned>(metas / 16));
  format_.block_bytes = kGemmTileBlock * format_.bits / 8 + metas;
}

void QuantPacking::FindRows(int tile, Row (&rows)[kGemmRowTile]) const {
  int64_t n = int64_t{tile} * kGemmRowTile;
  size_t piece = 0;
  const auto size = [&] { return params_->pieces[piece].rows.size(); };
  for (; piece < params_->pieces.size() && n >= size(); ++piece) n -= size();
  for (Row& row : rows) {
    while (piece < params_->pieces.size() && n == size()) ++piece, n = 0;
    if (piece == params_->pieces.size()) {
      row = {};
      continue;
    }
    const WeightPiece& from = params_->pieces[piece];
    row = {&from.source, from.source.first_row + from.rows.begin + n++};
  }
}

bool QuantPacking::RowsAreAlike() const {
  int64_t n = 0;
  for (const WeightPiece& piece : params_->pieces) n += piece.rows.size();
  for (int tile = 0; int64_t{tile} * kGemmRowTile < n; ++tile) {
    Row rows[kGemmRowTile];
    FindRows(tile, rows);
    for (const Row& row : rows) {
      if (row.source == nullptr) continue;
      const int64_t block_rows = std::max<int64_t>(row.source->scales.block_rows, 1);
      if (row.source != rows[0].source || row.row / block_rows != rows[0].row / block_rows) return false;
    }
  }
  return true;
}

int64_t QuantPacking::ColumnOf(int64_t block, int slot) const {
  const int64_t run = kGemmBlock >> format_.slot_shift, first = block * kGemmBlock + slot * run;
  for (int64_t c = first; c < first + run; ++c) {
    if (columns_[static_cast<size_t>(c)] >= 0) return params_->cols.begin + columns_[static_cast<size_t>(c)];
  }
  return -1;
}

bool QuantPacking::PackTile(int tile, std::vector<uint8_t>* out) {
  const int64_t blocks = static_cast<int64_t>(columns_.size()) / kGemmBlock, k = params_->cols.size();
  out->assign(static_cast<size_t>(blocks * format_.block_bytes), 0);
  codes_.resize(static_cast<size_t>(k));
  Row rows[kGemmRowTile];
  FindRows(tile, rows);
  const int code_bytes = kGemmTileBlock * format_.bits / 8;
  // Column c % 16 of step c / 16 is element e of a lane's register high * 2 + (row / 8): see QuantFormat.
  int offsets[kGemmBlock];
  for (int c = 0; c < kGemmBlock; ++c) {
    const int step = c / 16, pair = c % 8 / 2, high = c % 16 / 8, e = c % 2;
    offsets[c] = pair * 16 +
                 (format_.bits == 4 ? step * 4 + 2 * e + high : step / 2 * 512 + step % 2 * 8 + high * 4 + e);
  }
  for (int r = 0; r < kGemmRowTile; ++r) {
    if (rows[r].source == nullptr) continue;
    const WeightSource& source = *rows[r].source;
    if (!ReadCodes(source, rows[r].row, params_->cols.begin, params_->cols.end, codes_.data())) return false;
    const int place = r % 8 * 4 * 16 + (format_.bits == 8 ? r / 8 * 2 : 0);
    const int shift = format_.bits == 8 ? 0 : r / 8 * 4;
    for (int64_t block = 0; block < blocks; ++block) {
      uint8_t* to = out->data() + block * format_.block_bytes;
      const int32_t* columns = columns_.data() + block * kGemmBlock;
      for (int c = 0; c < kGemmBlock; ++c) {
        if (columns[c] < 0) continue;
        uint8_t& byte = to[place + offsets[c]];
        byte = static_cast<uint8_t>(byte | codes_[static_cast<size_t>(columns[c])] << shift);
      }
      if (r >= format_.meta_rows) continue;
      for (int slot = 0; slot < 1 << format_.slot_shift; ++slot) {
        const int64_t column = ColumnOf(block, slot);
        if (column < 0) continue;
        const uint32_t meta = MetaOf(source, rows[r].row, column);
        std::memcpy(to + code_bytes + (slot * format_.meta_rows + r) * format_.meta_bytes, &meta,
                    static_cast<size_t>(format_.meta_bytes));
      }
    }
  }
  return true;
}

}  // namespace phalanx::cuda
