#include "kernels/cpu/cpu_weight.h"

#include <algorithm>
#include <bit>

#include "base/status_macros.h"
#include "kernels/dequantize.h"

namespace phalanx {
namespace {

int64_t RoundUp(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

bool UsesManyRowsTree(const CpuWeight& weight, int64_t rows) {
  const GemmKernels& kernels = weight.kernels();
  return weight.quant() == nullptr && kernels.many_rows_tree != nullptr && rows > kernels.max_tile_rows &&
         weight.row_depth() <= kernels.tree_depth;
}

// Of all outputs and the first row.
TreeProductParams TreeParams(const CpuWeight& weight, const ProductOutput& output) {
  static_assert(1 << kMaxTreeLevels == kMaxShards);
  TreeProductParams p = {};
  p.a_depth = weight.row_depth();
  p.w = weight.panel(0, 0);
  p.panel_stride = weight.panel_stride();
  p.all_panels = output.gated ? weight.num_panels() / 2 : weight.num_panels();
  p.n = weight.n();
  p.segments = weight.packed_segments().data();
  p.tree_segments = weight.tree_segments().data();
  p.num_trees = static_cast<int>(weight.tree_segments().size());
  p.bias = output.bias;
  p.out = output.out;
  p.out_stride = output.stride;
  p.tree_stride = output.tree_stride;
  p.gate_panels = output.gated ? p.all_panels : 0;
  p.packed_out = output.packed;
  p.packed_depth = output.packed_depth;
  return p;
}

}  // namespace

absl::StatusOr<std::unique_ptr<CpuWeight>> CpuWeight::Pack(const GemmKernels& kernels,
                                                           const QuantKernels* quant,
                                                           const PackWeightParams& p, ThreadPool& pool,
                                                           WeightMemory* memory) {
  std::unique_ptr<CpuWeight> weight(new CpuWeight);
  weight->kernels_ = &kernels;
  weight->k_ = p.cols.size();
  for (const WeightPiece& piece : p.pieces) weight->n_ += piece.rows.size();
  std::vector<int64_t> cuts = p.shard_cuts;
  if (cuts.empty()) {
    cuts = {p.cols.begin, p.cols.end};
    weight->tree_segments_ = {1};
  } else {
    weight->subtrees_ = SubtreesOf(p.first_shard, p.first_shard + static_cast<int>(cuts.size()) - 1);
    for (const Subtree& tree : weight->subtrees_) weight->tree_segments_.push_back(tree.count);
  }
  if (const std::optional<QuantType> type = QuantPanels::TypeOf(p); quant != nullptr && type) {
    PHX_ASSIGN_OR_RETURN(weight->quant_, QuantPanels::Pack(*type, *quant, p, pool, memory));
    return weight;
  }
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    const int64_t depth = cuts[i + 1] - cuts[i], padded = RoundUp(depth, kernels.k_unit);
    weight->segments_.push_back({cuts[i] - p.cols.begin, depth});
    weight->packed_segments_.push_back(
        {weight->row_depth_, weight->panel_depth_, kernels.pad_weights ? padded : depth});
    weight->row_depth_ += padded;
    weight->panel_depth_ += weight->packed_segments_.back().depth;
  }
  const int64_t elements = weight->num_panels() * weight->panel_stride();
  bool packed = false;
  PHX_ASSIGN_OR_RETURN(weight->memory_, HostBuffer::Create(elements * kernels.weight_bytes, memory, &packed));
  if (packed) return weight;
  std::vector<std::vector<float>> scratch(static_cast<size_t>(pool.num_threads()));
  for (auto& s : scratch) s.resize(static_cast<size_t>(kPanel * weight->k_));
  pool.Run(weight->num_panels(), [&](int64_t panel, int thread) {
    weight->PackPanel(p, static_cast<int>(panel), scratch[static_cast<size_t>(thread)].data());
  });
  return weight;
}

void CpuWeight::PackPanel(const PackWeightParams& p, int panel, float* scratch) {
  const int64_t first = int64_t{panel} * kPanel;
  if (first + kPanel > n_) std::fill_n(scratch, kPanel * k_, 0.0f);
  int64_t piece_begin = 0;
  for (const WeightPiece& piece : p.pieces) {
    const int64_t begin = std::max(first, piece_begin);
    const int64_t end = std::min(first + kPanel, piece_begin + piece.rows.size());
    if (begin < end) {
      const int64_t row = piece.rows.begin - piece_begin;
      DequantizeTile(piece.source, {row + begin, row + end}, p.cols, scratch + (begin - first) * k_, k_);
    }
    piece_begin += piece.rows.size();
  }
  for (size_t i = 0; i < segments_.size(); ++i) {
    kernels_->pack_weights(scratch + segments_[i].x_begin, k_, segments_[i].depth,
                           const_cast<char*>(this->panel(panel, packed_segments_[i].w_begin)));
  }
}

absl::StatusOr<void*> Scratch::Get(int64_t bytes) {
  if (buffer_ == nullptr || buffer_->bytes() < bytes) {
    buffer_ = nullptr;
    PHX_ASSIGN_OR_RETURN(buffer_, HostBuffer::Create(bytes));
  }
  return buffer_->data();
}

absl::Status CpuGemm::Matmul(const Matrix& x, const CpuWeight& weight, const float* bias, const Matrix& y) {
  return Run(x, weight, {static_cast<float*>(y.data), y.stride, 0, bias});
}

absl::Status CpuGemm::ShardedMatmul(const Matrix& x, const CpuWeight& weight, float* sums,
                                    int64_t tree_stride) {
  return Run(x, weight, {sums, weight.n(), tree_stride, nullptr});
}

bool CpuGemm::CanGate(const CpuWeight& weight, int64_t rows) {
  return (weight.quant() != nullptr || UsesManyRowsTree(weight, rows)) && weight.subtrees().empty() &&
         weight.n() % (2 * kPanel) == 0;
}

absl::Status CpuGemm::GatedMatmul(const Matrix& x, const CpuWeight& weight, const Matrix& y) {
  return Run(x, weight, {static_cast<float*>(y.data), y.stride, 0, nullptr, true});
}

bool CpuGemm::CanGate(const CpuWeight& gate_up, const CpuWeight& down, int64_t rows) {
  if (!CanGate(gate_up, rows) || !UsesManyRowsTree(gate_up, rows) || !UsesManyRowsTree(down, rows))
    return false;
  // Without padding packed k lie as columns do.
  const int unit = down.kernels().k_unit;
  return std::all_of(down.segments().begin(), down.segments().end(),
                     [unit](const CpuWeight::Segment& s) { return s.depth % unit == 0; });
}

absl::Status CpuGemm::GatedShardedMatmul(const Matrix& x, const CpuWeight& gate_up, const CpuWeight& down,
                                         float* sums, int64_t tree_stride) {
  const int64_t rows = RoundUp(x.rows, down.kernels().max_tile_rows);
  PHX_ASSIGN_OR_RETURN(void* const packed,
                       gated_rows_.Get(rows * down.row_depth() * down.kernels().row_bytes + 64));
  PHX_RETURN_IF_ERROR(Run(x, gate_up,
                          {.out = nullptr,
                           .stride = 0,
                           .tree_stride = 0,
                           .bias = nullptr,
                           .gated = true,
                           .packed = packed,
                           .packed_depth = down.row_depth()}));
  RunManyRowsTree(static_cast<const char*>(packed), static_cast<int>(x.rows), down,
                  {.out = sums, .stride = down.n(), .tree_stride = tree_stride, .bias = nullptr});
  return absl::OkStatus();
}

void CpuGemm::RunManyRowsTree(const char* packed_rows, int num_rows, const CpuWeight& weight,
                              const ProductOutput& output) {
  const GemmKernels& kernels = weight.kernels();
  // All rows of a task stay in the second-level cache.
  constexpr int64_t kRowBytes = 640 << 10;
  const int64_t fitting = kRowBytes / (std::max<int64_t>(weight.row_depth(), 1) * kernels.row_bytes);
  const int unit = 2 * kernels.max_tile_rows;
  const int max_rows = std::max(unit, static_cast<int>(std::min<int64_t>(fitting, num_rows)) / unit * unit);
  // Where there are rows for it, a thread has rows of its own: they stay in its caches from product to
  // product.
  constexpr int kOwnRows = 128;
  const int num_blocks =
      std::max((num_rows + max_rows - 1) / max_rows, std::min(pool_.num_threads(), num_rows / kOwnRows));
  const int block_rows = static_cast<int>(RoundUp((num_rows + num_blocks - 1) / num_blocks, unit));
  const TreeProductParams whole = TreeParams(weight, output);
  const int task_panels = output.gated ? 4 : 8;
  const int panel_blocks = (whole.all_panels + task_panels - 1) / task_panels;
  pool_.Run(int64_t{panel_blocks} * num_blocks, [&](int64_t task, int) {
    const int row = static_cast<int>(task / panel_blocks) * block_rows;
    const int first_panel = static_cast<int>(task % panel_blocks) * task_panels;
    if (row >= num_rows) return;
    TreeProductParams p = whole;
    p.a = packed_rows + row * p.a_depth * kernels.row_bytes;
    p.rows = std::min(block_rows, num_rows - row);
    p.first_panel = first_panel;
    p.num_panels = std::min(task_panels, p.all_panels - first_panel);
    if (p.out != nullptr) p.out += row * p.out_stride;
    if (p.packed_out != nullptr)
      p.packed_out = static_cast<char*>(p.packed_out) + row * p.packed_depth * kernels.row_bytes;
    kernels.begin_task(kernels.max_tile_rows);
    kernels.many_rows_tree(p);
    kernels.end_task();
  });
}

absl::Status CpuGemm::Run(const Matrix& x, const CpuWeight& weight, const ProductOutput& output) {
  if (x.rows == 0 || weight.n() == 0) return absl::OkStatus();
  if (weight.quant() != nullptr) {
    return quant_.Run(x, *weight.quant(), weight.n(), weight.tree_segments(), output);
  }
  const GemmKernels& kernels = weight.kernels();
  const auto num_rows = static_cast<int>(x.rows);
  const int max_tile = kernels.max_tile_rows;
  const bool many_rows_tree = UsesManyRowsTree(weight, num_rows);

  // Rows are cut into blocks of whole tiles, blocks and panels into tasks.
  const int num_blocks = (num_rows + kernels.block_rows - 1) / kernels.block_rows;
  const auto block_begin = [&](int b) { return std::min(num_rows, b * kernels.block_rows); };
  const auto block_size = [&](int b) { return block_begin(b + 1) - block_begin(b); };
  const auto tile_rows_of = [&](int rows, int tiles, int t) {
    if (!kernels.balanced) return tiles == 1 && !many_rows_tree ? rows : max_tile;
    return TileBegin(rows, tiles, max_tile, true, t + 1) - TileBegin(rows, tiles, max_tile, true, t);
  };
  const int64_t packed_row_bytes = weight.row_depth() * kernels.row_bytes;
  PHX_ASSIGN_OR_RETURN(void* packed, rows_.Get(RoundUp(num_rows, max_tile) * packed_row_bytes + 64));
  char* const packed_rows = static_cast<char*>(packed);
  const int tiles_per_block = NumTiles(kernels.block_rows, max_tile);
  const auto pack_tile = [&](int64_t index, int) {
    const int b = static_cast<int>(index) / tiles_per_block, t = static_cast<int>(index) % tiles_per_block;
    const int rows = block_size(b), tiles = NumTiles(rows, max_tile);
    if (t >= tiles) return;
    const int begin = TileBegin(rows, tiles, max_tile, kernels.balanced, t);
    const int end = TileBegin(rows, tiles, max_tile, kernels.balanced, t + 1);
    const int row = block_begin(b) + begin;
    for (size_t i = 0; i < weight.segments().size(); ++i) {
      const CpuWeight::Segment& s = weight.segments()[i];
      kernels.pack(static_cast<const float*>(x.data) + row * x.stride + s.x_begin, x.stride, end - begin,
                   tile_rows_of(rows, tiles, t), s.depth, packed_rows + row * packed_row_bytes,
                   weight.packed_segments()[i].a_begin);
    }
  };
  if (num_rows * weight.k() < 65536) {
    for (int64_t i = 0; i < int64_t{num_blocks} * tiles_per_block; ++i) pack_tile(i, 0);
  } else {
    pool_.Run(int64_t{num_blocks} * tiles_per_block, pack_tile);
  }

  if (many_rows_tree) {
    RunManyRowsTree(packed_rows, num_rows, weight, output);
    return absl::OkStatus();
  }
  if (kernels.block_tree != nullptr && (num_rows <= max_tile || weight.row_depth() <= kernels.tree_depth)) {
    const TreeProductParams whole = TreeParams(weight, output);
    const int task_panels = num_rows <= max_tile ? 4 : kernels.block_panels;
    const int panel_blocks = (whole.all_panels + task_panels - 1) / task_panels;
    pool_.Run(int64_t{panel_blocks} * num_blocks, [&](int64_t task, int) {
      const int b = static_cast<int>(task % num_blocks);
      TreeProductParams p = whole;
      p.a = packed_rows + block_begin(b) * packed_row_bytes;
      p.rows = block_size(b);
      p.first_panel = static_cast<int>(task / num_blocks) * task_panels;
      p.num_panels = std::min(task_panels, p.all_panels - p.first_panel);
      p.out += block_begin(b) * p.out_stride;
      kernels.block_tree(p);
    });
    return absl::OkStatus();
  }
  bool deep = false;
  for (const CpuWeight::Segment& s : weight.segments()) deep |= s.depth > kernels.shallow_k;
  const int many_panels = deep ? kernels.deep_block_panels : kernels.block_panels;
  const int block_panels = num_rows <= max_tile ? 4 : many_panels;
  const int panel_blocks = (weight.num_panels() + block_panels - 1) / block_panels;
  const int padded_rows = static_cast<int>(RoundUp(std::min(num_rows, kernels.block_rows), max_tile));
  const int64_t width = int64_t{block_panels} * kPanel;
  const int64_t sum_size = padded_rows * width;
  const int max_count = *std::max_element(weight.tree_segments().begin(), weight.tree_segments().end());
  const int levels = std::bit_width(static_cast<unsigned>(max_count));
  for (Scratch& s : sums_) PHX_RETURN_IF_ERROR(s.Get(levels * sum_size * 4).status());

  pool_.Run(int64_t{panel_blocks} * num_blocks, [&](int64_t task, int thread) {
    const int b = static_cast<int>(task % num_blocks);
    const int first_panel = static_cast<int>(task / num_blocks) * block_panels;
    const int num_panels = std::min(block_panels, weight.num_panels() - first_panel);
    const int rows = block_size(b);
    const auto cols = std::min<int64_t>(weight.n() - int64_t{first_panel} * kPanel, num_panels * kPanel);
    auto* const stack = static_cast<float*>(*sums_[static_cast<size_t>(thread)].Get(0));
    PanelProductParams p;
    p.a = packed_rows + block_begin(b) * packed_row_bytes;
    p.a_depth = weight.row_depth();
    p.panel_stride = weight.panel_stride();
    p.num_panels = num_panels;
    p.rows = rows;
    p.c_stride = width;
    if (kernels.begin_task != nullptr) kernels.begin_task(rows);
    // Where nothing is to be added, and the kernels write whole panels and tiles of their own rows only, they
    // write the result in place.
    const bool in_place = output.bias == nullptr && weight.segments().size() == 1 && !deep &&
                          cols == num_panels * kPanel && (rows % max_tile == 0 || rows < max_tile);
    size_t segment = 0;
    for (size_t t = 0; t < weight.tree_segments().size(); ++t) {
      SumShards(weight.tree_segments()[t], stack, sum_size, rows * width, [&](int, float* sum) {
        const ProductSegment& s = weight.packed_segments()[segment++];
        p.a_begin = s.a_begin;
        p.w = weight.panel(first_panel, s.w_begin);
        p.depth = s.depth;
        p.c = sum;
        if (in_place) {
          p.c = output.out + block_begin(b) * output.stride + int64_t{first_panel} * kPanel;
          p.c_stride = output.stride;
        }
        kernels.product(p);
      });
      if (in_place) break;
      float* out = output.out + static_cast<int64_t>(t) * output.tree_stride +
                   block_begin(b) * output.stride + int64_t{first_panel} * kPanel;
      const float* bias = output.bias == nullptr ? nullptr : output.bias + int64_t{first_panel} * kPanel;
      for (int r = 0; r < rows; ++r) Avx2AddBias(stack + r * width, bias, cols, out + r * output.stride);
    }
    if (kernels.end_task != nullptr) kernels.end_task();
  });
  return absl::OkStatus();
}

}  // namespace phalanx
