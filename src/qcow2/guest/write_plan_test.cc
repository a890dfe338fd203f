// SPDX-License-Identifier: Apache-2.0
/// A small space, walked whole: all kinds of mappings of two or three clusters, all ranges on a
/// grid finer than a unit, images and data files, with and without zeros in fresh clusters.  Each
/// plan is played on a model of the host, which is then read by the new mappings.
#include "qcow2/guest/write_plan.h"

#include <gtest/gtest.h>

#include <map>
#include <vector>

#include "format/extended_l2.h"

namespace byre {
namespace {

constexpr uint64_t kFirst = 4;          ///< The guest cluster that the space begins with.
constexpr uint64_t kOldHosts = 100;     ///< Of cluster i: kOldHosts + 2 * i.
constexpr uint64_t kFreshHosts = 1000;  ///< What a reservation gives.

/// What half a unit holds: the smallest piece that the model tells apart.
enum class Content : uint8_t { garbage, zero, backing, data, stream, request };

struct Space {
  Geometry geometry;
  DataFile file;
  bool backing_shows;
  bool fresh_zero;
  std::vector<Mapping> old;
  uint64_t from;  ///< In halves of a unit.
  uint64_t to;

  uint64_t half() const { return geometry.unit_size() / 2; }
  uint64_t halves() const { return geometry.cluster_size() / half(); }
  WritePiece piece(Bytes data) const {
    return {
        .geometry = &geometry,
        .file = file,
        .backing_end = backing_shows ? UINT64_MAX : 0,
        .at = GuestOffset{kFirst * geometry.cluster_size() + from * half()},
        .data = data.first((to - from) * half()),
        .old = std::span(old).subspan(from / halves(), (to - 1) / halves() - from / halves() + 1)};
  }
  Content old_content(uint64_t cell) const {
    const Mapping& mapping = old[cell / halves()];
    const uint64_t unit = cell % halves() / 2;
    if (mapping.compressed) return Content::stream;
    if (mapping.allocated >> unit & 1) return Content::data;
    if ((mapping.zero >> unit & 1) || !backing_shows) return Content::zero;
    return Content::backing;
  }
};

/// The host by half units.
class Host {
 public:
  explicit Host(const Space& space) : space_(space) {
    for (uint64_t i = 0; i < space.old.size(); ++i) {
      const Mapping& mapping = space.old[i];
      for (uint64_t h = 0; h < space.halves(); ++h) {
        if (space.file == DataFile::external_raw) {
          cells_[(kFirst + i) * space.halves() + h] = space.old_content(i * space.halves() + h);
        }
        if (mapping.host && (mapping.allocated >> h / 2 & 1))
          cells_[mapping.host->value * space.halves() + h] = Content::data;
      }
      for (uint64_t h = 0; space.fresh_zero && h < space.halves(); ++h)
        cells_[(kFreshHosts + i) * space.halves() + h] = Content::zero;
    }
  }
  void write(uint64_t cell, Content content) {
    const uint64_t cluster = cell / space_.halves();
    EXPECT_TRUE(may_write(cluster)) << "host cluster " << cluster;
    cells_[cell] = content;
  }
  Content read(uint64_t cell) const {
    const auto found = cells_.find(cell);
    return found == cells_.end() ? Content::garbage : found->second;
  }

 private:
  bool may_write(uint64_t cluster) const {
    if (space_.file != DataFile::image)
      return cluster >= kFirst && cluster < kFirst + space_.old.size();
    for (const Mapping& mapping : space_.old) {
      if (mapping.host && mapping.copied && mapping.host->value == cluster) return true;
    }
    return cluster >= kFreshHosts && cluster < kFreshHosts + space_.old.size();
  }
  const Space& space_;
  std::map<uint64_t, Content> cells_;
};

/// Writes a segment as its plan says; counts how often each cell of the request is written.
void play(const Space& space, const WritePiece& segment, const FillPlan& plan, Host& host,
          std::vector<int>& written) {
  const uint64_t start = kFirst * space.geometry.cluster_size();
  GuestOffset done{0};
  for (const HostWrite& write : plan) {
    ASSERT_NE(write.length, 0u);
    ASSERT_GE(write.at, done);
    done = write.at + write.length;
    ASSERT_TRUE(write.around || (write.at >= segment.at && done <= segment.end()));
    for (uint64_t at = 0; at < write.length; at += space.half()) {
      const uint64_t cell = (write.at.value + at - start) / space.half();
      const bool asked = cell >= space.from && cell < space.to;
      if (asked) ++written[cell - space.from];
      if (!asked) {
        // Composed from the mapping that the plan names.
        ASSERT_EQ(&segment.old[*write.around], &space.old[cell / space.halves()]);
      }
      host.write((write.to.value + at) / space.half(),
                 asked ? Content::request : space.old_content(cell));
    }
  }
}

/// What a unit that the request does not touch is: as it was, or data with the old content.
void expect_untouched_unit_kept(const Mapping& old, const Mapping& now, uint64_t unit) {
  if (now == old) return;
  const bool was_data = old.compressed || (old.allocated >> unit & 1);
  const bool is_data = now.allocated >> unit & 1;
  if (was_data) EXPECT_TRUE(is_data);
  if (!is_data) EXPECT_EQ(old.zero >> unit & 1, now.zero >> unit & 1);
}

void check(const Space& space, Bytes data) {
  const Geometry& g = space.geometry;
  const WritePiece whole = space.piece(data);
  std::vector<Mapping> now = space.old;
  Host host(space);
  std::vector<int> written(space.to - space.from);
  uint64_t index = space.from / space.halves();
  uint64_t fresh = kFreshHosts;
  for (WritePiece rest = whole; !rest.old.empty();) {
    const WriteSegment segment = first_segment(rest);
    ASSERT_GE(segment.count, 1u);
    const WritePiece part = rest.before(segment.count);
    ASSERT_EQ(part.old.size(), segment.count);
    HostRun run;
    if (segment.method == WriteMethod::fresh) {
      run = {HostCluster{fresh}, space.fresh_zero, space.fresh_zero};
      fresh += segment.count;
    } else {
      run = own_place(part, segment.method);
    }
    play(space, part, plan_fill(part, segment.method, run), host, written);
    for (uint64_t i = 0; i < segment.count; ++i)
      now[index + i] = mapping_after(part, segment.method, run, i);
    if (segment.method == WriteMethod::in_place) EXPECT_EQ(now[index], space.old[index]);
    index += segment.count;
    rest = rest.after(segment.count);
  }
  ASSERT_EQ(index, (space.to - 1) / space.halves() + 1);
  for (const int times : written) ASSERT_EQ(times, 1);

  for (uint64_t i = 0; i < now.size(); ++i) {
    (void)encode_l2(now[i], g);  // Asserts that it is sound.
    for (uint64_t unit = 0; unit < g.units(); ++unit) {
      const uint64_t cell = i * space.halves() + unit * 2;
      if (cell + 2 <= space.from || cell >= space.to)
        expect_untouched_unit_kept(space.old[i], now[i], unit);
    }
    for (uint64_t h = 0; h < space.halves(); ++h) {
      const uint64_t cell = i * space.halves() + h;
      const bool asked = cell >= space.from && cell < space.to;
      const Content expected = asked ? Content::request : space.old_content(cell);
      Space after = space;
      after.old[i] = now[i];
      Content found = after.old_content(cell);
      if (found == Content::data) found = host.read(now[i].host->value * space.halves() + h);
      ASSERT_EQ(found, expected) << "cluster " << i << ", half unit " << h;
    }
  }
}

/// Every kind of mapping that a cluster can have, cluster `i` of the space.
std::vector<Mapping> kinds(const Geometry& g, DataFile file, uint64_t i) {
  const HostCluster host{file == DataFile::image ? kOldHosts + 2 * i : kFirst + i};
  const uint32_t all = g.all_units();
  std::vector<Mapping> list = {{}, {.zero = all}, {.copied = true, .allocated = all, .host = host}};
  if (g.version >= 3) list.push_back({.copied = true, .zero = all, .host = host});
  if (file == DataFile::image) {
    list.push_back({.allocated = all, .host = host});
    list.push_back({.zero = all, .host = host});
    list.push_back(compressed_mapping(g.start_of(host) + 512, 300));
  }
  if (!g.extended_l2) return list;
  for (const bool copied : {true, false}) {
    if (!copied && file != DataFile::image) continue;
    list.push_back({.copied = copied, .host = host});
    list.push_back({.copied = copied, .allocated = 0x0000'fffe, .zero = 0x7fff'0001, .host = host});
    list.push_back({.copied = copied, .allocated = 0x8000'0003, .host = host});
  }
  list.push_back({.zero = 0xc000'0001});
  return list;
}

/// Calls visit(space) for each space with these clusters and ranges between `points`.
template <class Visit>
void walk(const Geometry& g, DataFile file, uint64_t clusters, const std::vector<uint64_t>& points,
          const Visit& visit) {
  std::vector<std::vector<Mapping>> choices;
  uint64_t combinations = 1;
  for (uint64_t i = 0; i < clusters; ++i) {
    choices.push_back(kinds(g, file, i));
    combinations *= choices.back().size();
  }
  for (uint64_t n = 0; n < combinations; ++n) {
    std::vector<Mapping> old;
    for (uint64_t i = 0, rest = n; i < clusters; rest /= choices[i].size(), ++i)
      old.push_back(choices[i][rest % choices[i].size()]);
    for (const bool backing_shows : {false, true}) {
      if (backing_shows && file == DataFile::external_raw) continue;
      for (const bool fresh_zero : {false, true}) {
        if (fresh_zero && file != DataFile::image) continue;
        for (size_t a = 0; a < points.size(); ++a) {
          for (size_t b = a + 1; b < points.size(); ++b)
            visit(Space{g, file, backing_shows, fresh_zero, old, points[a], points[b]});
        }
      }
    }
  }
}

void walk_and_check(const Geometry& g, uint64_t clusters, const std::vector<uint64_t>& points) {
  const std::vector<std::byte> data(clusters * g.cluster_size());
  for (const DataFile file : {DataFile::image, DataFile::external, DataFile::external_raw}) {
    Geometry geometry = g;
    geometry.data_file = file != DataFile::image;
    walk(geometry, file, clusters, points, [&](const Space& space) {
      if (!::testing::Test::HasFailure()) check(space, data);
    });
  }
}

TEST(WritePlan, ThreeStandardClustersReadAsTheyShouldAfterEveryWrite) {
  walk_and_check({.cluster_bits = 9}, 3, {0, 1, 2, 3, 4, 5, 6});
}

TEST(WritePlan, TwoClustersWithSubclustersReadAsTheyShouldAfterEveryWrite) {
  // Half units: edges of the masks above, and of both clusters.
  walk_and_check({.cluster_bits = 14, .extended_l2 = true}, 2,
                 {0, 1, 2, 5, 32, 33, 62, 63, 64, 65, 66, 96, 127, 128});
}

TEST(WritePlan, EveryRangeOfHalfUnitsOfOneClusterWithSubclusters) {
  std::vector<uint64_t> points;
  for (uint64_t point = 0; point <= 64; ++point) points.push_back(point);
  walk_and_check({.cluster_bits = 14, .extended_l2 = true}, 1, points);
}

TEST(WritePlan, AFreshClusterOfZerosNeedsOnlyTheCallersBytes) {
  const Geometry g{.cluster_bits = 16};
  const std::vector<std::byte> data(4096);
  const std::vector<Mapping> old(1);
  const WritePiece piece{.geometry = &g, .at = GuestOffset{8192}, .data = data, .old = old};
  const HostRun host{HostCluster{7}, true, true};
  const FillPlan plan = plan_fill(piece, WriteMethod::fresh, host);
  ASSERT_EQ(plan.count, 1u);
  EXPECT_EQ(plan.writes[0].at, GuestOffset{8192});
  EXPECT_EQ(plan.writes[0].length, 4096u);
  EXPECT_EQ(plan.writes[0].to, HostOffset{7 * 65536 + 8192});
  EXPECT_FALSE(plan.writes[0].around);
}

}  // namespace
}  // namespace byre
