// SPDX-License-Identifier: Apache-2.0
#include "block/filter_fault.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <charconv>
#include <limits>

#include "base/checked.h"
#include "io/buffer.h"

namespace byre {

namespace {

constexpr std::array<std::string_view, kFaultEvents> kEventNames = {
    "none",
    "l1_update",
    "l1_grow_alloc_table",
    "l1_grow_write_table",
    "l1_grow_activate_table",
    "l2_load",
    "l2_update",
    "l2_update_compressed",
    "l2_alloc_cow_read",
    "l2_alloc_write",
    "read_aio",
    "read_backing_aio",
    "read_compressed",
    "write_aio",
    "write_compressed",
    "vmstate_load",
    "vmstate_save",
    "cow_read",
    "cow_write",
    "reftable_load",
    "reftable_grow",
    "reftable_update",
    "refblock_load",
    "refblock_update",
    "refblock_update_part",
    "refblock_alloc",
    "refblock_alloc_hookup",
    "refblock_alloc_write",
    "refblock_alloc_write_blocks",
    "refblock_alloc_write_table",
    "refblock_alloc_switch_table",
    "cluster_alloc",
    "cluster_alloc_bytes",
    "cluster_free",
    "flush_to_os",
    "flush_to_disk",
    "pwritev_rmw_head",
    "pwritev_rmw_after_head",
    "pwritev_rmw_tail",
    "pwritev_rmw_after_tail",
    "pwritev",
    "pwritev_zero",
    "pwritev_done",
    "empty_image_prepare",
    "l1_shrink_write_table",
    "l1_shrink_free_l2_clusters",
    "cor_write",
    "cluster_alloc_space",
};
static_assert(!kEventNames.back().empty());

constexpr std::array<std::string_view, 6> kIoNames = {"read",    "write", "write-zeroes",
                                                      "discard", "flush", "block-status"};

}  // namespace

std::string_view name_of(FaultEvent event) { return kEventNames[static_cast<size_t>(event)]; }

std::optional<FaultEvent> find_fault_event(std::string_view name) {
  std::string wanted(name);
  std::replace(wanted.begin(), wanted.end(), '.', '_');
  const auto* found = std::find(kEventNames.begin(), kEventNames.end(), wanted);
  if (found == kEventNames.end()) return std::nullopt;
  return static_cast<FaultEvent>(found - kEventNames.begin());
}

namespace {

/// What requests raise by their mark; marks that are not here raise nothing.  Room that is not
/// used is FaultEvent::none.
struct Raised {
  IoTag tag;
  std::array<FaultEvent, 3> events;
};
using enum FaultEvent;
constexpr Raised kRaised[] = {
    {IoTag::read_guest, {read_aio}},
    {IoTag::read_backing, {read_backing_aio}},
    {IoTag::read_compressed, {read_compressed}},
    {IoTag::write_guest, {write_aio}},
    {IoTag::write_compressed, {write_compressed}},
    {IoTag::vm_state_read, {vmstate_load, read_aio}},
    {IoTag::vm_state_write, {vmstate_save, write_aio}},
    {IoTag::copy_up_read, {cow_read}},
    // One write takes the guest's bytes down with the old ones around them.
    {IoTag::copy_up_write, {write_aio, cow_write}},
    {IoTag::header_update, {l1_grow_activate_table, refblock_alloc_switch_table}},
    {IoTag::l1_update, {l1_update}},
    {IoTag::l1_grow, {l1_grow_alloc_table, l1_grow_write_table}},
    {IoTag::l1_shrink, {l1_shrink_write_table}},
    {IoTag::l1_shrink_load, {l1_shrink_free_l2_clusters, l2_load}},
    {IoTag::l2_load, {l2_load}},
    // Entries of compressed clusters go down with all others.
    {IoTag::l2_update, {l2_update, l2_update_compressed}},
    {IoTag::l2_allocate, {l2_alloc_write}},
    {IoTag::refcount_load, {refblock_load}},
    {IoTag::refcount_update, {refblock_update, refblock_update_part}},
    {IoTag::refcount_allocate, {refblock_alloc, refblock_alloc_write, refblock_alloc_write_blocks}},
    {IoTag::refcount_table_load, {reftable_load}},
    {IoTag::refcount_table_update, {reftable_update, refblock_alloc_hookup}},
    {IoTag::refcount_table_grow, {reftable_grow, refblock_alloc_write_table}},
    {IoTag::flush, {flush_to_os, flush_to_disk}},
    {IoTag::commit_sync, {flush_to_disk}},
    {IoTag::cluster_punch, {cluster_free}},
    {IoTag::copy_on_read, {cor_write}},
};

}  // namespace

std::span<const FaultEvent> raised_by(IoTag tag) {
  for (const Raised& row : kRaised) {
    if (row.tag != tag) continue;
    const auto end = std::find(row.events.begin(), row.events.end(), none);
    return {row.events.begin(), end};
  }
  return {};
}

// Rules as text.

namespace {

Result<uint64_t> parse_number(const std::string& key, std::string_view value, uint64_t max) {
  uint64_t number = 0;
  const auto [end, failed] = std::from_chars(value.data(), value.data() + value.size(), number);
  if (failed != std::errc() || end != value.data() + value.size() || number > max) {
    return invalid(quoted(key), " takes a number up to ", max, ", not ", quoted(value));
  }
  return number;
}

Result<bool> parse_switch(const std::string& key, std::string_view value) {
  if (value == "on") return true;
  if (value == "off") return false;
  return invalid(quoted(key), " takes on or off, not ", quoted(value));
}

Result<void> set(InjectError& rule, const std::string& key, const std::string& value) {
  if (key == "state") {
    BYRE_TRY(number, parse_number(key, value, UINT32_MAX));
    rule.state = number;
  } else if (key == "errno") {
    BYRE_TRY(number, parse_number(key, value, 4095));
    if (number == 0) return invalid("'errno' cannot be 0");
    rule.error = static_cast<int>(number);
  } else if (key == "sector") {
    if (value == "-1") return {};  // Any, in blkdebug's words.
    BYRE_TRY(number, parse_number(key, value, UINT64_MAX / kSectorSize - 1));
    rule.sector = number;
  } else if (key == "iotype") {
    const auto* found = std::find(kIoNames.begin(), kIoNames.end(), value);
    if (found == kIoNames.end()) return invalid("no kind of request is called ", quoted(value));
    rule.io = static_cast<FaultIo>(found - kIoNames.begin());
  } else if (key == "once") {
    BYRE_TRY(once, parse_switch(key, value));
    rule.once = once;
  } else if (key == "immediately") {
    BYRE_TRY(immediately, parse_switch(key, value));
    rule.immediately = immediately;
  } else {
    return invalid("inject-error has no setting ", quoted(key));
  }
  return {};
}

Result<void> set(SetState& rule, const std::string& key, const std::string& value) {
  if (key != "state" && key != "new_state") {
    return invalid("set-state has no setting ", quoted(key));
  }
  BYRE_TRY(number, parse_number(key, value, UINT32_MAX));
  (key == "state" ? rule.state : rule.new_state) = number;
  return {};
}

template <class Rule>
Result<Rule> parse_rule(const FaultSection& section) {
  Rule rule;
  bool has_event = false;
  for (const auto& [key, value] : section.settings) {
    if (key == "event") {
      const std::optional<FaultEvent> event = find_fault_event(value);
      if (!event) return invalid("no event is called ", quoted(value));
      rule.event = *event;
      has_event = true;
      continue;
    }
    if (Result<void> result = set(rule, key, value); !result) return std::move(result).error();
  }
  if (!has_event) return invalid(section.kind, ": the event is missing");
  return rule;
}

std::string_view trimmed(std::string_view text) {
  constexpr std::string_view kBlank = " \t\r";
  const size_t first = text.find_first_not_of(kBlank);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kBlank) - first + 1);
}

}  // namespace

Result<void> add_rule(FaultRules& rules, const FaultSection& section) {
  if (section.kind == "inject-error") {
    BYRE_TRY(rule, parse_rule<InjectError>(section));
    rules.inject_errors.push_back(rule);
    return {};
  }
  if (section.kind == "set-state") {
    BYRE_TRY(rule, parse_rule<SetState>(section));
    rules.set_states.push_back(rule);
    return {};
  }
  return invalid("no kind of rule is called ", quoted(section.kind));
}

Result<FaultRules> parse_fault_config(std::string_view text) {
  FaultRules rules;
  std::optional<FaultSection> section;
  const auto end_section = [&]() -> Result<void> {
    return section ? add_rule(rules, *section) : Result<void>();
  };
  for (uint64_t number = 1; !text.empty(); ++number) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = trimmed(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.empty() || line[0] == '#') continue;

    if (line[0] == '[') {  // [kind] or [kind "name"]
      if (line.back() != ']') return invalid("line ", number, ": ']' is missing");
      if (Result<void> result = end_section(); !result) return std::move(result).error();
      const std::string_view inside = trimmed(line.substr(1, line.size() - 2));
      section = FaultSection{.kind = std::string(inside.substr(0, inside.find(' ')))};
      continue;
    }
    const size_t equals = line.find('=');
    if (equals == std::string_view::npos || !section) {
      return invalid("line ", number, " is neither a section nor a setting of one");
    }
    std::string_view value = trimmed(line.substr(equals + 1));
    if (value.size() >= 2 && value.front() == '"' && value.back() == '"') {
      value = value.substr(1, value.size() - 2);
    }
    section->settings.emplace_back(trimmed(line.substr(0, equals)), value);
  }
  if (Result<void> result = end_section(); !result) return std::move(result).error();
  return rules;
}

// The filter.

namespace {

constexpr uint64_t kNoLimit = std::numeric_limits<uint64_t>::max();

Result<void> check_multiple(std::string_view name, uint64_t value, std::string_view of,
                            uint64_t unit) {
  if (value > uint64_t{1} << 62)
    return invalid("blkdebug: ", name, "=", value, ": the largest is 2^62");
  if (unit == 0 || value % unit == 0) return {};
  return invalid("blkdebug: ", name, "=", value, " is no multiple of ", of, " (", unit, ")");
}

/// The next part of [at, end): up to `max` bytes that begin on the grid of `unit` and are multiples
/// of it, or what lies outside that grid.
uint64_t part_length(uint64_t at, uint64_t end, uint64_t unit, uint64_t max) {
  uint64_t length = end - at;
  if (at % unit != 0) {
    length = std::min(length, unit - at % unit);
  } else if (length >= unit) {
    length = round_down(length, unit);
  }
  return std::min(length, max);
}

}  // namespace

Result<void> check_limits(const FaultLimits& limits, uint32_t alignment_below) {
  if (limits.align != 0 && (!std::has_single_bit(limits.align) || limits.align > 1 * GiB))
    return invalid("blkdebug: align=", limits.align, ": it is a power of two up to 1 GiB");
  const uint64_t align = std::max(limits.align, alignment_below);
  const uint64_t zero_unit = limits.opt_write_zero != 0 ? limits.opt_write_zero : align;
  const uint64_t discard_unit = limits.opt_discard != 0 ? limits.opt_discard : align;
  struct Rule {
    std::string_view name;
    uint64_t value;
    std::string_view of;
    uint64_t unit;
  };
  const std::string_view zero_name = limits.opt_write_zero != 0 ? "opt-write-zero" : "align";
  const std::string_view discard_name = limits.opt_discard != 0 ? "opt-discard" : "align";
  for (const Rule& rule : {Rule{"max-transfer", limits.max_transfer, "align", align},
                           Rule{"opt-write-zero", limits.opt_write_zero, "align", align},
                           Rule{"max-write-zero", limits.max_write_zero, zero_name, zero_unit},
                           Rule{"opt-discard", limits.opt_discard, "align", align},
                           Rule{"max-discard", limits.max_discard, discard_name, discard_unit}}) {
    if (Result<void> fits = check_multiple(rule.name, rule.value, rule.of, rule.unit); !fits)
      return fits;
  }
  return {};
}

FaultFilter::FaultFilter(Child below, FaultRules rules, FaultLimits limits)
    : Filter(std::move(below)),
      rules_(std::move(rules)),
      limits_(limits),
      align_(std::max(limits.align, Filter::below().alignment())),
      limited_(align_ > 1 || limits.max_transfer != 0 || limits.opt_write_zero != 0 ||
               limits.max_write_zero != 0 || limits.opt_discard != 0 || limits.max_discard != 0),
      spent_(rules_.inject_errors.size()),
      locks_(Filter::below().reactor().ready()),
      changed_(Filter::below().reactor().ready()) {
  BYRE_ASSERT(bool(check_limits(limits_, Filter::below().alignment())));
  count(FaultEvent::none);
}

void FaultFilter::count(FaultEvent event) {
  const uint64_t before = state_;
  const auto applies = [&](const auto& rule) {
    return rule.event == event && (rule.state == 0 || rule.state == before);
  };
  bool arms = false;
  for (size_t i = 0; i < rules_.inject_errors.size(); ++i) {
    if (spent_[i] || !applies(rules_.inject_errors[i])) continue;
    if (!arms) armed_.clear();
    arms = true;
    armed_.push_back(i);
  }
  for (const SetState& rule : rules_.set_states) {
    if (applies(rule)) state_ = rule.new_state;
  }
}

void FaultFilter::meet_breaks(FaultEvent event, std::vector<Held*>& met) {
  for (size_t i = 0; i < breaks_.size();) {
    if (breaks_[i].event != event) {
      ++i;
      continue;
    }
    met.push_back(&held_.emplace_back(std::move(breaks_[i].tag), reactor().ready()));
    breaks_.erase(breaks_.begin() + static_cast<ptrdiff_t>(i));
  }
}

/// The first armed rule that fits `request`; a `once` rule is used up by this.
const InjectError* FaultFilter::take_armed(const Request& request) {
  for (size_t i = 0; i < armed_.size(); ++i) {
    const InjectError& rule = rules_.inject_errors[armed_[i]];
    if (rule.io ? *rule.io != request.io : request.io == FaultIo::block_status) continue;
    if (rule.sector) {
      const uint64_t at = *rule.sector * kSectorSize;
      const bool behind = at >= request.offset + request.length;
      if (request.length == 0 || behind || at + kSectorSize <= request.offset) continue;
    }
    if (rule.once) {
      spent_[armed_[i]] = true;
      armed_.erase(armed_.begin() + static_cast<ptrdiff_t>(i));
    }
    return &rule;
  }
  return nullptr;
}

Task<void> FaultFilter::reach(std::span<const FaultEvent> events) {
  std::vector<Held*> met;
  for (const FaultEvent event : events) {
    count(event);
    meet_breaks(event, met);
  }
  if (met.empty()) co_return;

  for (const Held* held : met) {
    if (on_hold) on_hold(held->tag, true);
  }
  changed_.notify();
  for (Held* held : met) co_await held->go.wait();
  held_.remove_if([&](const Held& held) { return std::count(met.begin(), met.end(), &held) != 0; });
}

/// What every request passes first.  `own` is raised beside what its mark raises; none: nothing is.
Task<void> FaultFilter::admit(Request request, IoTag tag, FaultEvent own) {
  co_await reach(raised_by(tag));
  if (own != FaultEvent::none) co_await reach({&own, 1});

  const InjectError* rule = take_armed(request);
  if (rule == nullptr) co_return;
  const int error = rule->error;
  const FaultEvent event = rule->event;
  if (!rule->immediately) co_await reactor().ready().yield();
  co_await fail(errno_error(error, cat("blkdebug: injected at ", name_of(event))));
}

Task<void> FaultFilter::read_part(uint64_t offset, MutableBytes data, IoTag tag) {
  const Request request{.io = FaultIo::read, .offset = offset, .length = data.size()};
  co_await admit(request, tag, FaultEvent::none);
  co_await below().read(offset, data, tag);
}

Task<void> FaultFilter::write_part(uint64_t offset, Bytes data, WriteOptions options) {
  const Request request{.io = FaultIo::write, .offset = offset, .length = data.size()};
  co_await admit(request, options.tag, FaultEvent::pwritev);
  co_await below().write(offset, data, options);
  co_await end_write(options.fua);
}

Task<void> FaultFilter::zero_part(uint64_t offset, uint64_t length, ZeroOptions options) {
  const Request request{.io = FaultIo::write_zeroes, .offset = offset, .length = length};
  co_await admit(request, IoTag::none, FaultEvent::pwritev_zero);
  co_await below().zero(offset, length, options);
  co_await end_write(options.fua);
}

/// A durable write is a flush as well.
Task<void> FaultFilter::end_write(bool fua) {
  if (fua) co_await admit(kFlush, IoTag::flush, FaultEvent::none);
  constexpr FaultEvent kDone = FaultEvent::pwritev_done;
  co_await reach({&kDone, 1});
}

Task<void> FaultFilter::discard_part(uint64_t offset, uint64_t length, DiscardOptions options) {
  const Request request{.io = FaultIo::discard, .offset = offset, .length = length};
  co_await admit(request, IoTag::cluster_punch, FaultEvent::none);
  co_await below().discard(offset, length, options);
}

Task<void> FaultFilter::flush(IoTag tag) {
  co_await admit(kFlush, tag, FaultEvent::none);
  co_await below().flush(tag);
}

/// What the aligned blocks of the range are; a block that is of several kinds is what all of them
/// are.
Task<Extent> FaultFilter::status(uint64_t offset, uint64_t length) {
  const Request request{.io = FaultIo::block_status, .offset = offset, .length = length};
  co_await admit(request, IoTag::none, FaultEvent::none);
  if (align_ == 1 || length == 0 || !within(offset, length, size()))
    co_return co_await below().status(offset, length);

  const uint64_t first = round_down(offset, align_);
  const uint64_t end = block_end(offset + length);
  Extent all = co_await below().status(first, end - first);
  if (first + all.length < end) {
    if (all.length >= align_) {
      all.length = round_down(all.length, align_);
    } else {
      const uint64_t block = std::min<uint64_t>(align_, end - first);
      while (all.length < block) {
        const Extent more = co_await below().status(first + all.length, block - all.length);
        all.length += more.length;
        all.data |= more.data;
        all.zero &= more.zero;
        all.allocated |= more.allocated;
        all.compressed |= more.compressed;
        all.host_offset.reset();
      }
    }
  }
  all.length = std::min(first + all.length, offset + length) - offset;
  if (all.host_offset) *all.host_offset += offset - first;
  co_return all;
}

Task<void> FaultFilter::allocate(uint64_t offset, uint64_t length) {
  const Request request{.io = FaultIo::write_zeroes, .offset = offset, .length = length};
  co_await admit(request, IoTag::none, FaultEvent::cluster_alloc_space);
  co_await below().allocate(offset, length);
}

/// A block that is read and written back must not bring back what is cut off.
Task<void> FaultFilter::resize(uint64_t size) {
  RangeLock::Request held(locks_, std::min(size, below().size()) / align_, UINT64_MAX,
                          RangeLock::Mode::exclusive);
  if (align_ > 1) co_await held;
  co_await below().resize(size);
}

Task<void> FaultFilter::close() {
  release_all();
  co_await Filter::close();
}

// Limits.

/// Where the aligned block that ends at or behind `end` ends; the last one may be a part of one.
uint64_t FaultFilter::block_end(uint64_t end) const {
  return std::min(round_up(end, align_), std::max(end, below().size()));
}

bool FaultFilter::is_aligned(uint64_t offset, uint64_t length) const {
  return offset % align_ == 0 && block_end(offset + length) == offset + length;
}

RangeLock::Request FaultFilter::lock(uint64_t offset, uint64_t length, RangeLock::Mode mode) {
  return {locks_, offset / align_, div_ceil(offset + length, align_), mode};
}

Task<void> FaultFilter::read_split(uint64_t offset, MutableBytes data, IoTag tag) {
  const uint64_t max = limits_.max_transfer != 0 ? limits_.max_transfer : kNoLimit;
  for (uint64_t done = 0; done < data.size();) {
    const uint64_t length = part_length(done, data.size(), 1, max);
    co_await read_part(offset + done, data.subspan(done, length), tag);
    done += length;
  }
}

Task<void> FaultFilter::write_split(uint64_t offset, Bytes data, WriteOptions options) {
  const uint64_t max = limits_.max_transfer != 0 ? limits_.max_transfer : kNoLimit;
  for (uint64_t done = 0; done < data.size();) {
    const uint64_t length = part_length(done, data.size(), 1, max);
    co_await write_part(offset + done, data.subspan(done, length), options);
    done += length;
  }
}

Task<void> FaultFilter::read_limited(uint64_t offset, MutableBytes data, IoTag tag) {
  if (!within(offset, data.size(), below().size()))
    co_await fail(out_of_range("read", offset, data.size()));
  if (data.empty() || is_aligned(offset, data.size())) {
    co_await read_split(offset, data, tag);
    co_return;
  }
  const uint64_t first = round_down(offset, align_);
  const Buffer buffer(block_end(offset + data.size()) - first);
  co_await read_split(first, buffer.bytes(), tag);
  copy(data, buffer.bytes().subspan(offset - first, data.size()));
}

/// The old contents of a block of which a part is written; zeros behind the end of the device.
Task<void> FaultFilter::read_for_update(uint64_t offset, MutableBytes block, FaultEvent before,
                                        FaultEvent after) {
  co_await reach({&before, 1});
  const uint64_t size = below().size();
  const uint64_t there = offset < size ? std::min<uint64_t>(size - offset, block.size()) : 0;
  if (there != 0) co_await read_split(offset, block.first(there), IoTag::none);
  fill_zero(block.subspan(there));
  co_await reach({&after, 1});
}

/// Under an exclusive lock.
Task<void> FaultFilter::write_unaligned(uint64_t offset, Bytes data, WriteOptions options) {
  const uint64_t first = round_down(offset, align_);
  const uint64_t data_end = offset + data.size();
  const uint64_t end = block_end(data_end);
  const Buffer buffer(end - first);
  const MutableBytes whole = buffer.bytes();
  const bool head = first != offset;
  if (head) {
    co_await read_for_update(first, whole.first(std::min<uint64_t>(align_, whole.size())),
                             FaultEvent::pwritev_rmw_head, FaultEvent::pwritev_rmw_after_head);
  }
  const uint64_t last = round_down(data_end, align_);
  if (end != data_end && !(head && last == first)) {
    co_await read_for_update(last, whole.subspan(last - first), FaultEvent::pwritev_rmw_tail,
                             FaultEvent::pwritev_rmw_after_tail);
  }
  copy(whole.subspan(offset - first), data);
  co_await write_split(first, whole, options);
}

Task<void> FaultFilter::write_limited(uint64_t offset, Bytes data, WriteOptions options) {
  if (!within(offset, data.size(), INT64_MAX - 1 * GiB))
    co_await fail(out_of_range("write", offset, data.size()));
  if (data.empty()) {
    co_await write_part(offset, data, options);
    co_return;
  }
  const bool aligned = is_aligned(offset, data.size());
  RangeLock::Request held =
      lock(offset, data.size(), aligned ? RangeLock::Mode::shared : RangeLock::Mode::exclusive);
  co_await held;
  if (aligned) {
    co_await write_split(offset, data, options);
  } else {
    co_await write_unaligned(offset, data, options);
  }
}

Task<void> FaultFilter::zero_limited(uint64_t offset, uint64_t length, ZeroOptions options) {
  if (!within(offset, length, INT64_MAX - 1 * GiB))
    co_await fail(out_of_range("zero", offset, length));
  if (length == 0) {
    co_await zero_part(offset, length, options);
    co_return;
  }
  const bool aligned = is_aligned(offset, length);
  if (!aligned && options.no_fallback) {
    co_await fail(unsupported("zero ", length, " bytes at ", hex(offset),
                              " without writing: the fault filter has align=", align_));
  }
  RangeLock::Request held =
      lock(offset, length, aligned ? RangeLock::Mode::shared : RangeLock::Mode::exclusive);
  co_await held;
  const uint64_t end = offset + length;
  const uint64_t first = std::min(round_up(offset, align_), end);
  const uint64_t last = block_end(end) == end ? end : std::max(first, round_down(end, align_));
  const std::vector<std::byte> zeros(std::max(first - offset, end - last));
  const WriteOptions edge{.fua = options.fua, .tag = IoTag::none};
  if (offset < first) co_await write_unaligned(offset, Bytes(zeros).first(first - offset), edge);
  const uint64_t unit = limits_.opt_write_zero != 0 ? limits_.opt_write_zero : 1;
  const uint64_t max = limits_.max_write_zero != 0 ? limits_.max_write_zero : kNoLimit;
  for (uint64_t at = first; at < last;) {
    const uint64_t part = part_length(at, last, unit, max);
    co_await zero_part(at, part, options);
    at += part;
  }
  if (last < end) co_await write_unaligned(last, Bytes(zeros).first(end - last), edge);
}

Task<void> FaultFilter::discard_limited(uint64_t offset, uint64_t length, DiscardOptions options) {
  if (!within(offset, length, below().size()))
    co_await fail(out_of_range("discard", offset, length));
  const uint64_t end = offset + length;
  const uint64_t first = round_up(offset, align_);
  const uint64_t last = block_end(end) == end ? end : round_down(end, align_);
  if (first >= last) co_return;
  RangeLock::Request held = lock(first, last - first, RangeLock::Mode::shared);
  co_await held;
  const uint64_t unit = limits_.opt_discard != 0 ? limits_.opt_discard : 1;
  const uint64_t max = limits_.max_discard != 0 ? limits_.max_discard : kNoLimit;
  for (uint64_t at = first; at < last;) {
    const uint64_t part = part_length(at, last, unit, max);
    co_await discard_part(at, part, options);
    at += part;
  }
}

// Breakpoints.

void FaultFilter::set_break(FaultEvent event, std::string tag) {
  breaks_.push_back({.event = event, .tag = std::move(tag)});
}

bool FaultFilter::holds(std::string_view tag) const {
  return std::any_of(held_.begin(), held_.end(),
                     [&](const Held& held) { return held.tag == tag && !held.go.is_set(); });
}

bool FaultFilter::waits_for(std::string_view tag) const {
  return std::any_of(breaks_.begin(), breaks_.end(), [&](const Break& b) { return b.tag == tag; });
}

Task<void> FaultFilter::wait_break(std::string tag) {
  while (!holds(tag)) {
    if (!waits_for(tag)) {
      co_await fail(Error(Errc::not_found, cat("no breakpoint ", quoted(tag), " is set")));
    }
    co_await changed_.wait();
  }
}

void FaultFilter::let_go(Held& held) {
  held.go.set();
  if (on_hold) on_hold(held.tag, false);
}

Result<void> FaultFilter::resume(std::string_view tag) {
  for (Held& held : held_) {
    if (held.tag != tag || held.go.is_set()) continue;
    let_go(held);
    return {};
  }
  return Error(Errc::not_found, cat("no request is held at ", quoted(tag)));
}

Result<void> FaultFilter::remove_break(std::string_view tag) {
  const bool removed = std::erase_if(breaks_, [&](const Break& b) { return b.tag == tag; }) != 0;
  bool resumed = false;
  while (resume(tag)) resumed = true;
  changed_.notify();
  if (removed || resumed) return {};
  return Error(Errc::not_found, cat("no breakpoint ", quoted(tag), " is set"));
}

FaultFilter::Memory FaultFilter::memory() const {
  Memory memory{.breaks = {}, .armed = armed_, .spent = spent_, .state = state_};
  for (const Break& one : breaks_) memory.breaks.emplace_back(one.event, one.tag);
  return memory;
}

void FaultFilter::recall(Memory memory) {
  BYRE_ASSERT(memory.spent.size() == spent_.size());
  for (auto& [event, tag] : memory.breaks) set_break(event, std::move(tag));
  armed_ = std::move(memory.armed);
  spent_ = std::move(memory.spent);
  state_ = memory.state;
}

void FaultFilter::release_all() {
  breaks_.clear();
  for (Held& held : held_) {
    if (!held.go.is_set()) let_go(held);
  }
  changed_.notify();
}

}  // namespace byre
