// SPDX-License-Identifier: Apache-2.0
/// The dirty bitmaps of a node: those that its image keeps (persistent), and those that are in
/// memory alone (loose), which any node may have; and its write threshold.
///
/// While a loose bitmap records or a threshold is set, a filter lies over the node that sees every
/// change on its way in (BitmapRecorder); bits are set before the change begins, so what they say
/// is never too little.  A threshold is told once, and the filter leaves with the next change of
/// bitmaps or thresholds.  What is refused is refused in QEMU's words.
/// Invariant: a name means one bitmap of a node; one that an export or a job uses is not changed.
/// Cost: a loose bitmap that records, or a threshold, costs a call a request; others cost their
/// bits. Not here: bitmaps in images (qcow2/ops/bitmap_ops.h), commands (bitmap_commands.cc).
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "block/filter.h"
#include "daemon/qmp_json.h"
#include "export/nbd_handshake.h"
#include "qcow2/bitmap/dirty_bits.h"

namespace byre {

class NamedNode;

struct LooseBitmap {
  std::string name;
  DirtyBits bits;
  bool recording = true;
};
using LooseBitmaps = std::vector<std::shared_ptr<LooseBitmap>>;

/// The first write or zeros that end behind `offset` are told; 0: there is no threshold.
struct WriteThreshold {
  uint64_t offset = 0;
  std::function<void(uint64_t end)> passed = {};
};

struct NodeBitmaps;

/// Sets bits of loose bitmaps for what changes below it, and tells of a threshold.
class BitmapRecorder final : public Filter {
 public:
  BitmapRecorder(Child below, NodeBitmaps& bitmaps) : Filter(std::move(below)), bitmaps_(bitmaps) {}
  BYRE_CORO_WRAPPER Task<void> read_pieces(uint64_t offset, IoVec pieces,
                                           ReadOptions options) override {
    return below().read_pieces(offset, pieces, options);
  }
  BYRE_CORO_WRAPPER Task<void> write_pieces(uint64_t offset, IoVec pieces,
                                            WriteOptions options) override {
    record(offset, size_of(pieces));
    pass(offset + size_of(pieces));
    return below().write_pieces(offset, pieces, options);
  }
  BYRE_CORO_WRAPPER Task<void> write(uint64_t offset, Bytes data, WriteOptions options) override {
    record(offset, data.size());
    pass(offset + data.size());
    return below().write(offset, data, options);
  }
  BYRE_CORO_WRAPPER Task<void> zero(uint64_t offset, uint64_t length,
                                    ZeroOptions options) override {
    record(offset, length);
    pass(offset + length);
    return below().zero(offset, length, options);
  }
  BYRE_CORO_WRAPPER Task<void> discard(uint64_t offset, uint64_t length,
                                       DiscardOptions options) override {
    record(offset, length);
    return below().discard(offset, length, options);
  }

 private:
  void record(uint64_t offset, uint64_t length);
  void pass(uint64_t end);
  NodeBitmaps& bitmaps_;
};

/// What a node keeps of its bitmaps.
struct NodeBitmaps {
  LooseBitmaps loose;
  std::map<std::string, uint32_t> users;  ///< Of bitmaps of either kind, by name.
  Child recorder;                         ///< To the filter over the node, while there is one.
  WriteThreshold threshold;
};

struct NewNodeBitmap {
  std::string name;
  std::optional<uint64_t> granularity;
  bool persistent = false;
  bool recording = true;
};

// Each refuses before it changes anything.
Task<void> add_bitmap(NamedNode& node, NewNodeBitmap bitmap, const DirtyBits* dirty = nullptr);
Task<void> remove_bitmap(NamedNode& node, std::string name);
Task<void> clear_bitmap(NamedNode& node, std::string name);
Task<void> enable_bitmap(NamedNode& node, std::string name, bool recording);
Task<void> merge_bitmap(NamedNode& node, std::string name, const DirtyBits& from);

/// What is known of one; "Dirty bitmap 'x' not found".
struct BitmapFacts {
  bool persistent = false;
  bool recording = false;
  uint32_t granularity_bits = 0;
};
Result<BitmapFacts> look_at_bitmap(NamedNode& node, const std::string& name);
/// A copy of the bits as they are.
Task<std::unique_ptr<DirtyBits>> bits_of(NamedNode& node, std::string name);
/// Errc::busy while somebody uses it.
Result<void> check_bitmap_free(const NamedNode& node, const std::string& name);

/// For query-named-block-nodes.
Task<qmp::Json> describe_bitmaps(NamedNode& node);

/// The context of an export; the bitmap counts as used until release_bitmap().
Task<nbd::ExportContext> use_bitmap(NamedNode& node, std::string name);
void release_bitmap(NamedNode& node, const std::string& name);

/// In place of the one that there is.
Task<void> set_write_threshold(NamedNode& node, WriteThreshold wanted);

/// The disk has another size now.
void resize_loose(NamedNode& node, uint64_t size);
/// The node is about to go: nothing records any more.
Task<void> drop_bitmaps(NamedNode& node);

}  // namespace byre
