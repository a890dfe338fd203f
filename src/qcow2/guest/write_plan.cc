// SPDX-License-Identifier: Apache-2.0
#include "qcow2/guest/write_plan.h"

#include <algorithm>
#include <bit>

#include "base/assert.h"

namespace byre {

namespace {

/// The part of a cluster that the request covers.
struct Covered {
  uint64_t from;
  uint64_t length;
};

Covered covered(const WritePiece& piece, uint64_t index) {
  const GuestOffset start = piece.start_of(index);
  const GuestOffset from = std::max(piece.at, start);
  const GuestOffset to = std::min(piece.end(), start + piece.geometry->cluster_size());
  return {from - start, to - from};
}

bool in_place(const WritePiece& piece, uint64_t index) {
  const Covered part = covered(piece, index);
  return writable_in_place(piece.old[index], part.from, part.length, *piece.geometry);
}

/// Ours alone, but not data yet.
bool preallocated(const Mapping& mapping) { return mapping.host && mapping.copied; }

/// From the first to the last byte that must be on the host, the caller's and what stands around
/// them.
struct Fill {
  GuestOffset from;
  GuestOffset to;
};

Fill fill_of_units(const WritePiece& segment) {
  const uint64_t unit = segment.geometry->unit_size();
  return {{round_down(segment.at.value, unit)}, {round_up(segment.end().value, unit)}};
}

/// Of fresh clusters: each unit that becomes data, unless the host reads there as the unit does.
Fill fill_of_fresh(const WritePiece& segment, const HostRun& host) {
  const uint64_t unit = segment.geometry->unit_size();
  const uint64_t last = segment.old.size() - 1;
  const auto units = [&](uint64_t index) {
    return mapping_after(segment, WriteMethod::fresh, host, index).allocated;
  };
  const auto reads_as_fresh = [&](uint64_t index) {
    const bool shows_below = segment.start_of(index).value < segment.backing_end;
    return reads_zero(segment.old[index], units(index), shows_below);
  };
  Fill fill{segment.at, segment.end()};
  if (!host.first_zero || !reads_as_fresh(0)) {
    const auto low = static_cast<uint64_t>(std::countr_zero(units(0)));
    fill.from = std::min(fill.from, segment.start_of(0) + low * unit);
  }
  if (!host.last_zero || !reads_as_fresh(last)) {
    const auto high = static_cast<uint64_t>(std::bit_width(units(last)));
    fill.to = std::max(fill.to, segment.start_of(last) + high * unit);
  }
  return fill;
}

}  // namespace

WritePiece WritePiece::before(uint64_t count) const {
  WritePiece part = *this;
  part.old = old.first(count);
  if (count < old.size()) part.data = data.first(start_of(count) - at);
  return part;
}

WritePiece WritePiece::after(uint64_t count) const {
  WritePiece part = *this;
  part.old = old.subspan(count);
  part.at = part.old.empty() ? end() : start_of(count);
  part.data = data.subspan(part.at - at);
  return part;
}

bool all_in_place(const WritePiece& piece) {
  for (uint64_t i = 0; i < piece.old.size(); ++i) {
    if (!in_place(piece, i)) return false;
  }
  return true;
}

WriteSegment first_segment(const WritePiece& piece) {
  if (in_place(piece, 0)) return {WriteMethod::in_place, 1};
  const bool external = piece.file != DataFile::image;
  if (!external && preallocated(piece.old[0])) return {WriteMethod::fill_preallocated, 1};
  uint64_t count = 1;
  while (count < piece.old.size() && !in_place(piece, count) &&
         (external || !preallocated(piece.old[count]))) {
    ++count;
  }
  return {external ? WriteMethod::external : WriteMethod::fresh, count};
}

HostRun own_place(const WritePiece& segment, WriteMethod method) {
  BYRE_ASSERT(method != WriteMethod::fresh);
  if (method == WriteMethod::external) return {HostCluster{segment.first().value}};
  return {*segment.old[0].host};
}

FillPlan plan_fill(const WritePiece& segment, WriteMethod method, const HostRun& host) {
  const GuestOffset at = segment.at;
  const GuestOffset end = segment.end();
  // A raw data file reads as the disk already, so nothing need be written around the bytes.
  const bool bytes_alone =
      method == WriteMethod::in_place || segment.file == DataFile::external_raw;
  const Fill fill = bytes_alone                    ? Fill{at, end}
                    : method == WriteMethod::fresh ? fill_of_fresh(segment, host)
                                                   : fill_of_units(segment);

  FillPlan plan;
  const auto add = [&](GuestOffset from, GuestOffset to, std::optional<uint64_t> around) {
    const HostOffset host_at =
        segment.geometry->start_of(host.first) + (from - segment.start_of(0));
    plan.writes[plan.count++] = {from, to - from, host_at, around};
  };
  // What stands around the bytes goes down with those of the same edge: a cluster, or a unit of an
  // external data file, which is written more often.  What lies between two edges goes down from
  // the caller's own memory.
  const uint64_t edge = method == WriteMethod::external ? segment.geometry->unit_size()
                                                        : segment.geometry->cluster_size();
  const GuestOffset head_end{round_down(at.value, edge) + edge};
  const GuestOffset tail_start{round_down(end.value - 1, edge)};
  const uint64_t last = segment.old.size() - 1;
  if (head_end > tail_start) {  // All in one edge.
    const bool alone = fill.from == at && fill.to == end;
    add(fill.from, fill.to, alone ? std::nullopt : std::optional<uint64_t>(0));
    return plan;
  }
  const GuestOffset middle = fill.from == at ? at : head_end;
  const GuestOffset middle_end = fill.to == end ? end : tail_start;
  if (fill.from < at) add(fill.from, middle, 0);
  if (middle < middle_end) add(middle, middle_end, std::nullopt);
  if (fill.to > end) add(middle_end, fill.to, last);
  return plan;
}

Mapping mapping_after(const WritePiece& segment, WriteMethod method, const HostRun& host,
                      uint64_t index) {
  const Geometry& g = *segment.geometry;
  const Mapping& old = segment.old[index];
  if (method == WriteMethod::in_place) return old;
  const Covered part = covered(segment, index);
  Mapping mapping{.copied = true,
                  .allocated = units_touched(part.from, part.length, g),
                  .zero = old.zero,
                  .host = host.first + index};
  if (method != WriteMethod::fresh) {
    mapping.allocated |= old.allocated;
  } else if (old.compressed || old.allocated != 0) {
    mapping.allocated = g.all_units();  // Everything moves.
  }
  if (segment.file == DataFile::external_raw) mapping.allocated = g.all_units();
  mapping.zero &= ~mapping.allocated;
  return mapping;
}

}  // namespace byre
