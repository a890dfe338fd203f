// SPDX-License-Identifier: Apache-2.0
#include "daemon/bitmap_commands.h"

#include <nettle/sha2.h>

#include <algorithm>
#include <utility>

#include "daemon/daemon.h"
#include "daemon/modules.h"

namespace byre::qmp {

namespace {

Result<NamedNode*> node_of(Call& call, const std::string& name) {
  return call.daemon().nodes().need(name, name);
}

class Adding final : public ActionRun {
 public:
  Adding(Call& call, BitmapAdd args) : call_(call), args_(std::move(args)) {}
  Task<void> act() override {
    NamedNode* const node = co_await node_of(call_, args_.node);
    NewNodeBitmap wanted{
        .name = args_.name, .persistent = args_.persistent, .recording = !args_.disabled};
    if (args_.granularity) wanted.granularity = *args_.granularity;
    co_await add_bitmap(*node, std::move(wanted));
  }
  Task<void> undo() override {
    NamedNode* const node = co_await node_of(call_, args_.node);
    co_await remove_bitmap(*node, args_.name);
  }

 private:
  Call& call_;
  const BitmapAdd args_;
};

/// Of one that exists: what it was before is kept.
class Changing final : public ActionRun {
 public:
  Changing(Call& call, BitmapChange change, BitmapName args)
      : call_(call), change_(change), args_(std::move(args)) {}

  Task<void> act() override {
    NamedNode* const node = co_await node_of(call_, args_.node);
    before_ = co_await look_at_bitmap(*node, args_.name);
    co_await check_bitmap_free(*node, args_.name);
    switch (change_) {
      case BitmapChange::remove:
        co_await keep_bits(*node);
        co_await remove_bitmap(*node, args_.name);
        break;
      case BitmapChange::clear:
        co_await keep_bits(*node);
        co_await clear_bitmap(*node, args_.name);
        break;
      case BitmapChange::enable:
      case BitmapChange::disable:
        co_await enable_bitmap(*node, args_.name, change_ == BitmapChange::enable);
        break;
    }
  }

  Task<void> undo() override {
    NamedNode* const node = co_await node_of(call_, args_.node);
    switch (change_) {
      case BitmapChange::remove: {
        NewNodeBitmap again{.name = args_.name,
                            .granularity = uint64_t{1} << before_.granularity_bits,
                            .persistent = before_.persistent,
                            .recording = before_.recording};
        co_await add_bitmap(*node, std::move(again), bits_.get());
        break;
      }
      case BitmapChange::clear:
        co_await merge_bitmap(*node, args_.name, *bits_);
        break;
      case BitmapChange::enable:
      case BitmapChange::disable:
        co_await enable_bitmap(*node, args_.name, before_.recording);
        break;
    }
  }

 private:
  /// A bitmap that cannot be read can be removed for good only.
  Task<void> keep_bits(NamedNode& node) {
    Result<std::unique_ptr<DirtyBits>> bits = co_await bits_of(node, args_.name).result();
    if (bits) {
      bits_ = *std::move(bits);
    } else if (change_ != BitmapChange::remove) {
      co_await fail(std::move(bits).error());
    }
  }

  Call& call_;
  const BitmapChange change_;
  const BitmapName args_;
  BitmapFacts before_;
  std::unique_ptr<DirtyBits> bits_;
};

class Merging final : public ActionRun {
 public:
  Merging(Call& call, BitmapMerge args) : call_(call), args_(std::move(args)) {}

  /// All sources together first: so either all of them are merged or none.
  Task<void> act() override {
    NamedNode* const node = co_await node_of(call_, args_.node);
    co_await look_at_bitmap(*node, args_.target);
    co_await check_bitmap_free(*node, args_.target);
    before_ = co_await bits_of(*node, args_.target);
    std::unique_ptr<DirtyBits> all;
    for (const BitmapOfExport& source : args_.bitmaps) {
      NamedNode* const other = co_await node_of(call_, source.node.value_or(args_.node));
      std::unique_ptr<DirtyBits> bits = co_await bits_of(*other, source.name);
      if (bits->size() != before_->size()) {
        co_await fail(invalid("Bitmaps are of different sizes (destination size is ",
                              before_->size(), ", source size is ", bits->size(),
                              ") and can't be merged"));
      }
      if (!all) {
        all = std::move(bits);
      } else if (bits->granularity_bits() < all->granularity_bits()) {
        bits->merge(*all);
        all = std::move(bits);
      } else {
        all->merge(*bits);
      }
    }
    if (all) co_await merge_bitmap(*node, args_.target, *all);
  }
  Task<void> undo() override {
    NamedNode* const node = co_await node_of(call_, args_.node);
    co_await clear_bitmap(*node, args_.target);
    co_await merge_bitmap(*node, args_.target, *before_);
  }

 private:
  Call& call_;
  const BitmapMerge args_;
  std::unique_ptr<DirtyBits> before_;
};

// --- Commands and actions ------------------------------------------------------------------------

Task<Json> bitmap_add(Call& call, BitmapAdd args) {
  Adding adding(call, std::move(args));
  co_await adding.act();
  co_return Json();
}
Task<Json> bitmap_merge(Call& call, BitmapMerge args) {
  Merging merging(call, std::move(args));
  co_await merging.act();
  co_return Json();
}
template <BitmapChange change>
Task<Json> bitmap_change(Call& call, BitmapName args) {
  NamedNode* const node = co_await node_of(call, args.node);
  co_await look_at_bitmap(*node, args.name);
  switch (change) {
    case BitmapChange::remove:
      co_await remove_bitmap(*node, std::move(args.name));
      break;
    case BitmapChange::clear:
      co_await clear_bitmap(*node, std::move(args.name));
      break;
    case BitmapChange::enable:
    case BitmapChange::disable:
      co_await enable_bitmap(*node, std::move(args.name), change == BitmapChange::enable);
      break;
  }
  co_return Json();
}
template <BitmapChange change>
std::unique_ptr<ActionRun> make_change(Call& call, BitmapName args) {
  return changing(call, change, std::move(args));
}

constexpr std::string_view kAdd = "block-dirty-bitmap-add";
constexpr std::string_view kRemove = "block-dirty-bitmap-remove";
constexpr std::string_view kClear = "block-dirty-bitmap-clear";
constexpr std::string_view kEnable = "block-dirty-bitmap-enable";
constexpr std::string_view kDisable = "block-dirty-bitmap-disable";
constexpr std::string_view kMerge = "block-dirty-bitmap-merge";

const Command<BitmapAdd> kAddCommand({.name = kAdd,
                                      .help = "makes a bitmap, which records what is written",
                                      .run = bitmap_add});
const Command<BitmapName> kRemoveCommand({.name = kRemove,
                                          .help = "removes a bitmap",
                                          .run = bitmap_change<BitmapChange::remove>});
const Command<BitmapName> kClearCommand({.name = kClear,
                                         .help = "forgets what a bitmap has recorded",
                                         .run = bitmap_change<BitmapChange::clear>});
const Command<BitmapName> kEnableCommand({.name = kEnable,
                                          .help = "lets a bitmap record",
                                          .run = bitmap_change<BitmapChange::enable>});
const Command<BitmapName> kDisableCommand({.name = kDisable,
                                           .help = "lets a bitmap stay as it is",
                                           .run = bitmap_change<BitmapChange::disable>});
const Command<BitmapMerge> kMergeCommand({.name = kMerge,
                                          .help = "adds to a bitmap what others have recorded",
                                          .run = bitmap_merge});

const Action<BitmapAdd> kAddAction(kAdd, adding);
const Action<BitmapName> kRemoveAction(kRemove, make_change<BitmapChange::remove>);
const Action<BitmapName> kClearAction(kClear, make_change<BitmapChange::clear>);
const Action<BitmapName> kEnableAction(kEnable, make_change<BitmapChange::enable>);
const Action<BitmapName> kDisableAction(kDisable, make_change<BitmapChange::disable>);
const Action<BitmapMerge> kMergeAction(kMerge, merging);

}  // namespace

const Struct& definition_of(const BitmapName*) {
  static const Struct kStruct({field("node", &BitmapName::node, "whose bitmap"),
                               field("name", &BitmapName::name, "which")});
  return kStruct;
}
const Struct& definition_of(const BitmapAdd*) {
  static const Struct kStruct(
      {field("node", &BitmapAdd::node, "whose changes it records"),
       field("name", &BitmapAdd::name, "what it is called"),
       field("granularity", &BitmapAdd::granularity, "bytes for each bit, a power of two"),
       with_default("persistent", &BitmapAdd::persistent, "the image keeps it"),
       with_default("disabled", &BitmapAdd::disabled, "it records nothing yet")});
  return kStruct;
}
const Struct& definition_of(const BitmapMerge*) {
  static const Struct kStruct({field("node", &BitmapMerge::node, "whose bitmap"),
                               field("target", &BitmapMerge::target, "which gets the bits"),
                               field("bitmaps", &BitmapMerge::bitmaps, "where they come from")});
  return kStruct;
}

std::unique_ptr<ActionRun> adding(Call& call, BitmapAdd args) {
  return std::make_unique<Adding>(call, std::move(args));
}
std::unique_ptr<ActionRun> merging(Call& call, BitmapMerge args) {
  return std::make_unique<Merging>(call, std::move(args));
}
std::unique_ptr<ActionRun> changing(Call& call, BitmapChange change, BitmapName args) {
  return std::make_unique<Changing>(call, change, std::move(args));
}

namespace {

// --- x-debug-block-dirty-bitmap-sha256 -----------------------------------------------------------

/// Of the bits in 64-bit words, the lowest first, each word with its lowest byte first.
std::string sha256_of(const DirtyBits& bits) {
  sha256_ctx hash;
  sha256_init(&hash);
  uint64_t left = round_up(bits.granules(), 64) / 8;
  std::vector<std::byte> bytes(bits.part_bytes());
  for (uint64_t part = 0; part < bits.parts(); ++part) {
    bits.store(part, bytes);
    const uint64_t length = std::min<uint64_t>(left, bytes.size());
    const void* const data = bytes.data();
    sha256_update(&hash, length, static_cast<const uint8_t*>(data));
    left -= length;
  }
  uint8_t digest[SHA256_DIGEST_SIZE];
  sha256_digest(&hash, sizeof digest, digest);
  std::string text;
  for (const uint8_t byte : digest) {
    constexpr std::string_view kDigits = "0123456789abcdef";
    text += kDigits[byte >> 4];
    text += kDigits[byte & 15];
  }
  return text;
}

const Struct& digest_type() {
  static const Struct kDigest({result_field<std::string>("sha256", "of the bits")});
  return kDigest;
}
Task<Json> bitmap_sha256(Call& call, BitmapName args) {
  NamedNode* const node = call.daemon().nodes().find(args.node);
  if (!node) co_return Error(Errc::not_found, cat("Node '", args.node, "' not found"));
  const std::unique_ptr<DirtyBits> bits = co_await bits_of(*node, args.name);
  co_return Json({{"sha256", sha256_of(*bits)}});
}
const Command<BitmapName> kSha256({.name = "x-debug-block-dirty-bitmap-sha256",
                                   .help = "a checksum of a bitmap's bits",
                                   .result = &digest_type(),
                                   .run = bitmap_sha256});

}  // namespace

void add_bitmap_commands(CommandSet& set) {
  set.add(kSha256);
  set.add(kAddCommand);
  set.add(kRemoveCommand);
  set.add(kClearCommand);
  set.add(kEnableCommand);
  set.add(kDisableCommand);
  set.add(kMergeCommand);
  set.add(kAddAction);
  set.add(kRemoveAction);
  set.add(kClearAction);
  set.add(kEnableAction);
  set.add(kDisableAction);
  set.add(kMergeAction);
}

}  // namespace byre::qmp
