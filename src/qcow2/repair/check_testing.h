// SPDX-License-Identifier: Apache-2.0
/// What the tests of check, repair and recovery share: small images made by QEMU and by hand,
/// damage drawn from a seed, the real qemu-img as the judge.
#pragma once

#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <set>

#include "base/prng.h"
#include "block/memory.h"
#include "block/raw.h"
#include "format/header.h"
#include "format/l2.h"
#include "format/refcount.h"
#include "io/io_testing.h"
#include "qcow2/core/image_header.h"
#include "qcow2/ops/create.h"
#include "qcow2/repair/check.h"
#include "sim/sim_disk.h"

namespace byre {

using ImageBytes = std::vector<std::byte>;

inline uint64_t word(const ImageBytes& image, uint64_t at) {
  return at + 8 <= image.size() ? load_be<uint64_t>(image, at) : 0;
}

/// Where the metadata of a small image are, read without any care.
struct Places {
  explicit Places(const ImageBytes& image) : image_(image) {
    cluster_size = uint64_t{1} << load_be<uint32_t>(image, 20);
    extended = load_be<uint32_t>(image, 4) == 3 && (word(image, 72) & kExtendedL2) != 0;
    add_l1(word(image, 40), load_be<uint32_t>(image, 36), "l1");
    const uint64_t table = word(image, 48);
    const uint64_t count = uint64_t{load_be<uint32_t>(image, 56)} * cluster_size / 8;
    for (uint64_t i = 0; i < count; ++i) {
      if (i < 4) words["refcount table"].push_back(table + 8 * i);
      if (const uint64_t block = word(image, table + 8 * i)) {
        add_set("refcount block", block, cluster_size);
      }
    }
    if (load_be<uint32_t>(image, 60) != 0) {
      const uint64_t at = word(image, 64);
      for (uint64_t i = 0; i + 8 <= std::min<uint64_t>(image.size() - at, 120); i += 8) {
        words["snapshot table"].push_back(at + i);
      }
      add_l1(word(image, at), load_be<uint32_t>(image, at + 8), "snapshot l1");
    }
  }

  /// Offsets of 8-byte words of metadata, by kind.
  std::map<std::string, std::vector<uint64_t>> words;
  uint64_t cluster_size = 0;
  bool extended = false;
  /// What every guest cluster of every L2 table is, but for COPIED; by the entry's offset.
  std::map<uint64_t, uint64_t> entries;
  std::set<uint64_t> data_clusters;

 private:
  void add_set(const std::string& kind, uint64_t at, uint64_t size) {
    for (uint64_t i = 0; i < size; i += 8) {
      if (word(image_, at + i) != 0) words[kind].push_back(at + i);
    }
  }
  void add_l1(uint64_t at, uint64_t count, const std::string& kind) {
    for (uint64_t i = 0; i < count && at + 8 * i < image_.size(); ++i) {
      words[kind].push_back(at + 8 * i);
      const uint64_t l2 = word(image_, at + 8 * i) & kOffsetMask;
      if (l2 == 0 || l2 % cluster_size != 0) continue;
      add_set(kind + " l2", l2, cluster_size);
      words[kind + " l2"].push_back(l2 + cluster_size / 2);
      for (uint64_t j = 0; j < cluster_size; j += extended ? 16 : 8) {
        add_entry(l2 + j, word(image_, l2 + j));
      }
    }
  }
  void add_entry(uint64_t at, uint64_t entry) {
    if ((entry & kCompressed) != 0) {
      entries[at] = entry & ~kCopied;
    } else if ((entry & kReadsZero) != 0 && (entry & kOffsetMask) % cluster_size != 0) {
      entries[at] = kReadsZero;  // The host means nothing.
    } else {
      entries[at] = entry & ~kCopied;
      if ((entry & kOffsetMask) != 0) data_clusters.insert((entry & kOffsetMask) / cluster_size);
    }
  }
  const ImageBytes& image_;
};

class CheckTest : public testing::Test {
 protected:
  // The real programs.

  std::pair<int, std::string> run(const std::string& command) {
    return run_shell(folder_, command);
  }
  void must(const std::string& command) {
    const auto [code, out] = run(command + " 2>&1");
    ASSERT_EQ(code, 0) << command << ": " << out;
  }
  /// An image by qemu-img and qemu-io; `writes` are commands of qemu-io.
  ImageBytes make(const std::string& options, const std::string& size,
                  const std::vector<std::string>& writes,
                  const std::vector<std::string>& afterwards = {}) {
    must(cat("rm -f made && qemu-img create -q -f qcow2 ", options, " made ", size));
    std::string command = "qemu-io -f qcow2 ";
    for (const std::string& write : writes) command += cat("-c '", write, "' ");
    if (!writes.empty()) must(command + "made > /dev/null");
    for (const std::string& after : afterwards) must(after);
    return load("made");
  }
  ImageBytes load(const std::string& name) {
    std::ifstream in(folder_ / name, std::ios::binary);
    const std::string text((std::istreambuf_iterator<char>(in)), {});
    const Bytes bytes = bytes_of(std::string_view(text));
    return {bytes.begin(), bytes.end()};
  }
  void save(const ImageBytes& image, const std::string& name) {
    std::ofstream out(folder_ / name, std::ios::binary);
    out.write(text_of(image).data(), static_cast<std::streamsize>(image.size()));
  }

  struct Counts {
    int code = 0;  ///< qemu-img's exit code: 0, 2 corrupt, 3 leaks; 1 for "could not".
    uint64_t corruptions = 0, leaks = 0, check_errors = 0;
    uint64_t allocated = 0, compressed = 0, fragmented = 0, total = 0, end = 0;
    friend bool operator==(const Counts&, const Counts&) = default;
    friend std::ostream& operator<<(std::ostream& out, const Counts& c) {
      return out << cat("exit code ", c.code, ", corruptions ", c.corruptions, ", leaks ", c.leaks,
                        ", check errors ", c.check_errors, ", allocated ", c.allocated,
                        ", compressed ", c.compressed, ", fragmented ", c.fragmented, ", total ",
                        c.total, ", end ", c.end);
    }
  };
  Counts qemu_counts(const ImageBytes& image) {
    save(image, "judged");
    const auto [code, out] = run("qemu-img check -f qcow2 --output=json judged 2>&1");
    const std::string& said = out;
    const auto number = [&said](const std::string& key) -> uint64_t {
      const size_t at = said.find(cat("\"", key, "\": "));
      return at == std::string::npos ? 0 : std::stoull(said.substr(at + key.size() + 4));
    };
    return {.code = code,
            .corruptions = number("corruptions"),
            .leaks = number("leaks"),
            .check_errors = number("check-errors"),
            .allocated = number("allocated-clusters"),
            .compressed = number("compressed-clusters"),
            .fragmented = number("fragmented-clusters"),
            .total = number("total-clusters"),
            .end = number("image-end-offset")};
  }

  // byre.

  CheckReport check(Device& file, Repair repair = Repair::none) {
    Result<CheckReport> report = reactor_->run(check_image(file, {.repair = repair}));
    if (!report) {
      ADD_FAILURE() << report.error().message();
      return {};
    }
    return *std::move(report);
  }
  /// As qemu-img would count.
  static Counts counts_of(const CheckReport& report) {
    const uint64_t corruptions = report.corruptions - report.corruptions_beyond_qemu;
    return {.code = corruptions != 0    ? 2
                    : report.leaks != 0 ? 3
                                        : 0,
            .corruptions = corruptions,
            .leaks = report.leaks,
            .check_errors = report.check_errors,
            .allocated = report.allocated_clusters,
            .compressed = report.compressed_clusters,
            .fragmented = report.fragmented_clusters,
            .total = report.total_clusters,
            .end = report.image_end_offset};
  }
  static std::string words_of(const CheckReport& report) {
    std::string all;
    for (const Finding& finding : report.findings) {
      all += cat(finding.repaired ? "(repaired) " : "", finding.text, "\n");
      if (all.size() > 2000) break;
    }
    return all;
  }

  /// The images that are damaged by the tests below.
  std::vector<ImageBytes> small_images() {
    const std::vector<std::string> writes = {"write -q -P 1 0 80k", "write -q -c -P 2 128k 64k",
                                             "write -q -z 256k 64k", "write -q -P 3 1000k 24k",
                                             "discard -q 0 16k"};
    const std::vector<std::string> snapshots = {
        "qemu-img snapshot -c a made", "qemu-io -f qcow2 -c 'write -q -P 4 0 8k' made",
        "qemu-img snapshot -c b made", "qemu-io -f qcow2 -c 'write -q -P 5 8k 8k' made"};
    std::vector<ImageBytes> images;
    images.push_back(make("-o cluster_size=512", "4M", writes));
    images.push_back(make("-o cluster_size=4k", "4M", writes));
    images.push_back(make("-o cluster_size=4k,refcount_bits=64", "4M", writes));
    images.push_back(make("-o cluster_size=4k,compat=0.10", "4M", writes, snapshots));
    images.push_back(make("-o cluster_size=512", "4M", writes, snapshots));
    images.push_back(make("-o cluster_size=16k,extended_l2=on", "4M", writes, snapshots));
    images.push_back(make("-o cluster_size=4k", "4M", writes,
                          {"qemu-img bitmap --add -g 512 made b",
                           "qemu-io -f qcow2 -c 'write -q -P 7 2M 32k' made"}));
    return images;
  }
  /// One word of metadata, changed; says which and how.
  struct Damage {
    std::string kind;
    uint64_t at = 0;
    uint64_t value = 0;
    /// What QEMU makes of it is of no use for a comparison (see DamageIsCountedAsQemuCountsIt).
    bool beside_the_rules = false;
  };
  static Damage damage(ImageBytes& image, Prng& prng) {
    const Places places(image);
    const uint64_t cluster = places.cluster_size;
    auto kind = places.words.begin();
    std::advance(kind, static_cast<std::ptrdiff_t>(prng.below(places.words.size())));
    const auto draw = [&] {
      return std::min(kind->second[prng.below(kind->second.size())], image.size() - 8);
    };
    Damage damage{.kind = kind->first, .at = draw()};
    const uint64_t before = word(image, damage.at);
    switch (prng.below(6)) {
      case 0:
        damage.value = before ^ uint64_t { 1 } << prng.below(64);
        break;
      case 1:
        damage.value = prng.next();
        break;
      case 2:
        damage.value = 0;
        break;
      case 3:
        damage.value = (before & ~kOffsetMask) | prng.below(image.size() / cluster + 2) * cluster;
        break;
      case 4:
        damage.value = word(image, draw());
        break;
      default:
        damage.value = before + cluster;
        break;
    }
    const uint64_t offset = damage.value & kOffsetMask;
    if (kind->first == "l1" || kind->first == "snapshot l1") {
      damage.beside_the_rules = damage.value != 0 && (offset == 0 || offset % cluster != 0);
    } else if (kind->first == "refcount table") {
      damage.beside_the_rules = damage.value % cluster != 0;
    } else if (kind->first == "snapshot table") {
      damage.beside_the_rules = true;
    }
    store_be(image, damage.at, damage.value);
    return damage;
  }

  // Small images by byre.

  /// An empty image, and `data` clusters of data at the start of its disk.
  void small_image(MemoryDevice& file, CreateOptions options, uint64_t data = 0) {
    if (!reactor_->run(create_image(file, options))) ADD_FAILURE() << "not created";
    const uint64_t size = options.cluster_size;
    const uint64_t l2 = file.size();
    const uint64_t l1 = get(file, 40);
    if (data == 0) return;
    put(file, l1, l2 | kCopied);
    count(file, l2 / size, 1);
    for (uint64_t i = 0; i < data; ++i) {
      const uint64_t host = l2 + (1 + i) * size;
      put(file, l2 + i * 8, host | kCopied);
      count(file, host / size, 1);
      file.poke(host, std::vector<std::byte>(size, std::byte{static_cast<uint8_t>(i + 1)}));
    }
  }
  static uint64_t get(const MemoryDevice& file, uint64_t at) {
    std::byte bytes[8];
    file.peek(at, bytes);
    return load_be<uint64_t>(bytes);
  }
  static void put(MemoryDevice& file, uint64_t at, uint64_t value) {
    std::byte bytes[8];
    store_be(bytes, 0, value);
    file.poke(at, bytes);
  }
  /// Sets the refcount of a cluster that the first refcount block counts.
  static void count(MemoryDevice& file, uint64_t cluster, uint64_t refcount) {
    std::byte start[512];
    file.peek(0, start);
    const uint32_t version = load_be<uint32_t>(start, 4);
    const uint32_t order = version == 2 ? 4 : load_be<uint32_t>(start, 96);
    std::vector<std::byte> block(uint64_t{1} << load_be<uint32_t>(start, 20));
    const uint64_t at = get(file, get(file, 48));
    file.peek(at, block);
    set_refcount(block, cluster, order, refcount);
    file.poke(at, block);
  }

  std::unique_ptr<Reactor> reactor_ = *make_reactor();
  TemporaryFolder folder_;
};

}  // namespace byre
