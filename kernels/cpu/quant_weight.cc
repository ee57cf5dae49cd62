#include "kernels/cpu/quant_weight.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/status_macros.h"

namespace phalanx {
namespace {

std::optional<QuantType> Quantised(DType dtype) {
  switch (dtype) {
    case DType::kQ8_0:
      return QuantType::kQ8_0;
    case DType::kQ4_0:
      return QuantType::kQ4_0;
    case DType::kQ4_1:
      return QuantType::kQ4_1;
    default:
      return std::nullopt;
  }
}

// Copies kQuads words of a block's integers to every 16th word.
template <int kQuads>
void SpreadQuads(const uint8_t* from, char* to) {
  for (int i = 0; i < kQuads; ++i) std::memcpy(to + i * 64, from + i * 4, 4);
}

}  // namespace

std::optional<QuantType> QuantPanels::TypeOf(const PackWeightParams& p) {
  std::optional<QuantType> type;
  for (const WeightPiece& piece : p.pieces) {
    if (piece.rows.size() == 0) continue;
    const std::optional<QuantType> own = Quantised(piece.source.dtype);
    if (!own || (type && *type != *own)) return std::nullopt;
    type = own;
  }
  return type;
}

absl::StatusOr<std::unique_ptr<QuantPanels>> QuantPanels::Pack(QuantType type, const QuantKernels& kernels,
                                                               const PackWeightParams& p, ThreadPool& pool,
                                                               WeightMemory* memory) {
  std::unique_ptr<QuantPanels> weight(new QuantPanels);
  weight->type_ = type;
  weight->kernels_ = &kernels;
  std::vector<int64_t> cuts = p.shard_cuts;
  if (cuts.empty()) cuts = {p.cols.begin, p.cols.end};
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    const int64_t depth = cuts[i + 1] - cuts[i];
    const auto phase = static_cast<int>(cuts[i] % kQuantBlock);
    const int64_t blocks = depth == 0 ? 0 : (phase + depth + kQuantBlock - 1) / kQuantBlock;
    weight->segments_.push_back({cuts[i] - p.cols.begin, depth, phase});
    weight->runs_.push_back({weight->blocks_, blocks});
    weight->blocks_ += blocks;
  }
  // Rows of the result, of which row i is row first_row of a source.
  struct PieceRows {
    const WeightSource* source;
    int64_t begin, end, first_row;
  };
  std::vector<PieceRows> pieces;
  int64_t n = 0;
  for (const WeightPiece& piece : p.pieces) {
    pieces.push_back({&piece.source, n, n + piece.rows.size(), piece.rows.begin});
    n += piece.rows.size();
  }
  weight->num_panels_ = static_cast<int>((n + kPanel - 1) / kPanel);
  const int64_t bytes = weight->blocks_ * (QuantDataBytes(type) + QuantScaleBytes(type));
  weight->panel_bytes_ = (bytes + 63) / 64 * 64;
  bool packed = false;
  PHX_ASSIGN_OR_RETURN(weight->memory_,
                       HostBuffer::Create(weight->num_panels_ * weight->panel_bytes_, memory, &packed));
  if (packed) return weight;
  pool.Run(weight->num_panels_, [&](int64_t panel, int) {
    char* const to = const_cast<char*>(weight->panel(static_cast<int>(panel)));
    for (const PieceRows& rows : pieces) {
      const int64_t end = std::min(rows.end, (panel + 1) * kPanel);
      for (int64_t row = std::max(rows.begin, panel * kPanel); row < end; ++row) {
        weight->PackRow(*rows.source, rows.first_row + row - rows.begin, p.cols.begin, to,
                        static_cast<int>(row - panel * kPanel));
      }
    }
  });
  return weight;
}

void QuantPanels::PackRow(const WeightSource& source, int64_t row, int64_t first_column, char* panel,
                          int place) const {
  const int64_t block_bytes = BlockBytes(source.dtype);
  const auto* const bytes = static_cast<const uint8_t*>(source.data) +
                            (source.first_row + row) * RowBytes(source.dtype, source.cols);
  char* data = panel + place * 4;
  char* scales = panel + blocks_ * QuantDataBytes(type_) + place * 2;
  for (size_t i = 0; i < segments_.size(); ++i) {
    const uint8_t* block = bytes + (first_column + segments_[i].x_begin) / kQuantBlock * block_bytes;
    for (int64_t b = 0; b < runs_[i].blocks; ++b, block += block_bytes) {
      std::memcpy(scales, block, 2);
      if (type_ == QuantType::kQ8_0) {
        SpreadQuads<8>(block + 2, data);
      } else if (type_ == QuantType::kQ4_0) {
        SpreadQuads<4>(block + 2, data);
      } else {
        std::memcpy(scales + 32, block + 2, 2);
        SpreadQuads<4>(block + 4, data);
      }
      data += QuantDataBytes(type_);
      scales += QuantScaleBytes(type_);
    }
  }
}

void QuantGemm::PackTiles(const Matrix& x, const QuantPanels& weight, int tile_rows, char* packed) {
  const auto num_rows = static_cast<int>(x.rows);
  const QuantKernels& kernels = weight.kernels();
  const int64_t tile_bytes = QuantTileBytes(tile_rows, weight.blocks());
  const auto pack = [&](int64_t tile, int) {
    const int64_t row = tile * tile_rows;
    for (size_t i = 0; i < weight.segments().size(); ++i) {
      const QuantPanels::Segment& s = weight.segments()[i];
      kernels.pack({.x = static_cast<const float*>(x.data) + row * x.stride + s.x_begin,
                    .stride = x.stride,
                    .rows = static_cast<int>(std::min<int64_t>(tile_rows, num_rows - row)),
                    .depth = s.depth,
                    .phase = s.phase,
                    .type = weight.type(),
                    .tile = {packed + tile * tile_bytes, tile_rows, weight.blocks()},
                    .begin = weight.runs()[i].begin});
    }
  };
  const int tiles = NumTiles(num_rows, tile_rows);
  if (num_rows * x.cols < 32768) {
    for (int t = 0; t < tiles; ++t) pack(t, 0);
  } else {
    pool_.Run(tiles, pack);
  }
}

absl::Status QuantGemm::Run(const Matrix& x, const QuantPanels& weight, int64_t n,
                            const std::vector<int>& tree_segments, const ProductOutput& output) {
  const QuantKernels& kernels = weight.kernels();
  const auto num_rows = static_cast<int>(x.rows);
  const int tile_rows = kernels.tile_rows(num_rows);
  const int64_t tile_bytes = QuantTileBytes(tile_rows, weight.blocks());
  PHX_ASSIGN_OR_RETURN(void* packed, rows_.Get(NumTiles(num_rows, tile_rows) * tile_bytes));
  char* const packed_rows = static_cast<char*>(packed);
  PackTiles(x, weight, tile_rows, packed_rows);

  // Rows are cut into blocks of whole tiles, blocks and panels into tasks. Where there are rows for it, a
  // thread has rows of its own: they stay in its caches from product to product.
  constexpr int kOwnRows = 128;
  const int num_blocks = std::max((num_rows + kernels.block_rows - 1) / kernels.block_rows,
                                  std::min(pool_.num_threads(), num_rows / kOwnRows));
  const int rows_of_block = (num_rows + num_blocks - 1) / num_blocks;
  const int block_rows = NumTiles(rows_of_block, tile_rows) * tile_rows;
  // With a gate, panels of its half; each goes with the one of the other half.
  const int panels = output.gated ? weight.num_panels() / 2 : weight.num_panels();
  const int max_panels = num_rows <= 32 ? 32 : 8;
  const int block_panels = std::clamp(panels * num_blocks / (pool_.num_threads() * 8), 1, max_panels);
  const int panel_blocks = (panels + block_panels - 1) / block_panels;
  const int64_t width = int64_t{block_panels} * kPanel;
  const bool has_tree = num_rows <= kernels.tree_rows;
  const int max_count = *std::max_element(tree_segments.begin(), tree_segments.end());
  // Both halves of gated outputs, or pending sums of a panel.
  const int64_t sum_size = std::min(num_rows, block_rows) * (output.gated ? width : kPanel);
  const int sums = output.gated ? 2 : has_tree ? 0 : std::bit_width(static_cast<unsigned>(max_count));
  for (Scratch& s : sums_) PHX_RETURN_IF_ERROR(s.Get(sums * sum_size * 4).status());

  pool_.Run(int64_t{panel_blocks} * num_blocks, [&](int64_t task, int thread) {
    const int first_row = static_cast<int>(task / panel_blocks) * block_rows;
    const int first_panel = static_cast<int>(task % panel_blocks) * block_panels;
    if (first_row >= num_rows) return;
    QuantProductParams p;
    p.type = weight.type();
    p.a = packed_rows + first_row / tile_rows * tile_bytes;
    p.tile_rows = tile_rows;
    p.tile_bytes = tile_bytes;
    p.row_blocks = weight.blocks();
    p.w = weight.panel(first_panel);
    p.panel_bytes = weight.panel_bytes();
    p.num_panels = std::min(block_panels, panels - first_panel);
    p.rows = std::min(block_rows, num_rows - first_row);
    const auto end = [&] {
      if (kernels.end_task != nullptr) kernels.end_task(tile_rows);
    };
    if (kernels.begin_task != nullptr) kernels.begin_task(tile_rows);
    const int64_t column = int64_t{first_panel} * kPanel;
    const int64_t cols = std::min<int64_t>((output.gated ? n / 2 : n) - column, p.num_panels * kPanel);
    float* const out = output.out + first_row * output.stride + column;
    const float* const bias = output.bias == nullptr ? nullptr : output.bias + column;
    const QuantTree tree = {.runs = weight.runs().data(),
                            .tree_runs = tree_segments.data(),
                            .num_trees = static_cast<int>(tree_segments.size()),
                            .tree_stride = output.tree_stride,
                            .bias = bias,
                            .cols = cols};
    const auto product = [&](const QuantRun& run, float* c, int64_t stride) {
      p.c = c;
      p.c_stride = stride;
      has_tree ? kernels.tree(p, tree) : kernels.product(p, run);
    };
    // What makes whole outputs, and where nothing is to be added and panels are whole, writes in place.
    if (!output.gated &&
        (has_tree || (bias == nullptr && weight.runs().size() == 1 && cols == p.num_panels * kPanel))) {
      product(weight.runs()[0], out, output.stride);
      return end();
    }
    auto* const stack = static_cast<float*>(*sums_[static_cast<size_t>(thread)].Get(0));
    if (output.gated) {
      product(weight.runs()[0], stack, width);
      p.w = weight.panel(panels + first_panel);
      product(weight.runs()[0], stack + sum_size, width);
      for (int r = 0; r < p.rows; ++r)
        Avx2SwiGlu(stack + r * width, stack + sum_size + r * width, cols, out + r * output.stride);
      return end();
    }
    // Panel by panel: its blocks follow one another in memory, and the sums stay in the nearest cache.
    const int task_panels = p.num_panels;
    p.num_panels = 1;
    for (int panel = 0; panel < task_panels; ++panel) {
      p.w = weight.panel(first_panel + panel);
      const int64_t panel_cols = std::min<int64_t>(kPanel, cols - panel * kPanel);
      const QuantRun* run = weight.runs().data();
      for (size_t t = 0; t < tree_segments.size(); ++t) {
        SumShards(tree_segments[t], stack, sum_size, p.rows * kPanel,
                  [&](int, float* sum) { product(*run++, sum, kPanel); });
        float* to = out + static_cast<int64_t>(t) * output.tree_stride + panel * kPanel;
        for (int r = 0; r < p.rows; ++r)
          Avx2AddBias(stack + r * kPanel, bias == nullptr ? nullptr : bias + panel * kPanel, panel_cols,
                      to + r * output.stride);
      }
    }
    end();
  });
  return absl::OkStatus();
}

}  // namespace phalanx
