// SPDX-License-Identifier: Apache-2.0
/// byre-soak: storms on a real disk, for as long as one likes.
///
///     byre-soak [--seconds N] [--seed S] FOLDER
///
/// Rounds of half a minute at most, each on a new image of another shape in FOLDER/soak.qcow2,
/// which is opened anew several times.  Clients write, rewrite compressed, zero, read, and discard
/// large parts of the disk; one makes, applies and deletes snapshots; one flushes.  The oracle of
/// the simulator knows what each sector may hold, so every read is checked, and every snapshot as
/// long as it is there.  Each round ends with a check that finds nothing at all, no leak either,
/// and with a file that is no longer and takes no more blocks than docs/engine.md (Memory and
/// space) allows. Not here: cuts, faults and chosen interleavings (tests/sim); killed processes
/// (tests/system).
#include <sys/stat.h>
#include <unistd.h>

#include <charconv>
#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

#include "base/prng.h"
#include "block/raw.h"
#include "coro/range_lock.h"
#include "coro/scope.h"
#include "io/file_opener.h"
#include "io/standard_descriptors.h"
#include "job/create.h"
#include "oracle.h"
#include "qcow2/image.h"
#include "qcow2/repair/check.h"

namespace byre {
namespace {

constexpr uint64_t kDisk = 96 * MiB;
constexpr int64_t kRound = 30 * kSecond;
constexpr int kLives = 3;
constexpr size_t kClients = 6;
constexpr size_t kSnapshotsMax = 2;
/// Beyond what was in use at the fullest moment: what the file may be longer by.  First fit leaves
/// gaps that large writes, and runs of clusters for tables, do not fit in.
constexpr uint64_t kSlack = 8 * MiB;

struct Shape {
  CreateOptions create;
  ImageOptions open;
  std::string text;
};

Shape draw_shape(Prng& prng) {
  Shape shape;
  CreateOptions& create = shape.create;
  create.size = kDisk;
  static constexpr uint64_t kSizes[] = {4 * KiB, 16 * KiB, 64 * KiB, 64 * KiB, 256 * KiB, 2 * MiB};
  create.cluster_size = kSizes[prng.below(std::size(kSizes))];
  create.extended_l2 = create.cluster_size >= 16 * KiB && prng.one_in(3);
  create.refcount_bits = prng.one_in(2) ? 16 : 1u << prng.between(2, 6);
  create.lazy_refcounts = prng.one_in(4);
  if (prng.one_in(2)) create.compression = Compression::zstd;
  shape.open = {.writable = true, .lock = false, .table_cache_size = 64 * KiB << prng.below(10)};
  shape.text = cat("clusters of ", create.cluster_size, ", refcounts of ", create.refcount_bits,
                   create.extended_l2 ? ", extended L2" : "",
                   create.lazy_refcounts ? ", lazy refcounts" : "",
                   create.compression == Compression::zstd ? ", zstd" : "");
  return shape;
}

struct Copy {
  std::string name;
  Oracle::Contents contents;
};

class Round {
 public:
  Round(Reactor& reactor, FileOpener& opener, std::string path, Shape shape, uint64_t seed,
        int64_t time)
      : reactor_(reactor),
        opener_(opener),
        path_(std::move(path)),
        shape_(std::move(shape)),
        prng_(seed),
        time_(time) {}

  Task<void> play() {
    co_await create_disk(
        reactor_, opener_, path_,
        {.format = DiskFormat::qcow2, .image = shape_.create, .replace = true, .sync = false});
    in_use_ = div_ceil(file_length(), cluster());
    for (int life = 0; life < kLives; ++life) co_await live();
    co_await judge();
    std::printf(
        "  %llu requests, %llu MiB compressed, %llu snapshots; file %.1f MiB, at most %.1f MiB in "
        "use\n",
        ull(requests_), ull(compressed_ / MiB), ull(snapshots_made_), mib(length_),
        mib(most_in_use_));
    std::fflush(stdout);
  }

 private:
  static unsigned long long ull(uint64_t value) { return value; }
  static double mib(uint64_t value) { return static_cast<double>(value) / (1 << 20); }

  Task<void> live() {
    image_ = co_await Image::open(reactor_, opener_, path_, shape_.open);
    end_ = reactor_.now().ns + time_ / kLives;
    Scope scope(reactor_.ready());
    for (size_t i = 0; i < kClients; ++i) scope.spawn(client(prng_.next()));
    scope.spawn(keep_snapshots(prng_.next()));
    Result<void> done = co_await scope.join().result();
    if (done) done = co_await drop_snapshots().result();
    if (done) done = co_await read_all().result();
    Result<void> closed = co_await image_->close().result();
    const ImageStats after = image_->stats();
    most_in_use_ = std::max(most_in_use_, (in_use_ + after.clusters_peak) * cluster());
    in_use_ += after.clusters_allocated;
    in_use_ -= std::min(in_use_, after.clusters_freed);
    image_.reset();
    co_await std::move(done);
    co_await std::move(closed);
  }

  bool over() const { return reactor_.now().ns >= end_; }

  Task<void> client(uint64_t seed) {
    Prng prng(seed);
    while (!over()) {
      ++requests_;
      const uint64_t what = prng.below(16);
      if (what == 0) {
        const uint64_t flush = oracle_.begin_flush();
        co_await image_->flush().doing("flush");
        oracle_.end_flush(flush);
      } else if (what < 4) {
        co_await read(prng);
      } else if (what == 4) {
        co_await storm(prng);
      } else if (what < 7) {
        co_await zero(prng);
      } else if (what < 10) {
        co_await write(prng, true);
      } else {
        co_await write(prng, false);
      }
    }
  }

  uint64_t cluster() const { return shape_.create.cluster_size; }

  /// A few clusters, or a few sectors.
  std::pair<uint64_t, uint64_t> draw_range(Prng& prng, bool whole) {
    const uint64_t unit = whole ? cluster() : kSectorSize;
    const uint64_t most = whole ? std::max<uint64_t>(2 * MiB / cluster(), 1) : 256;
    const uint64_t length = prng.between(1, most) * unit;
    const uint64_t offset = prng.below((kDisk - length) / unit + 1) * unit;
    return {offset, length};
  }

  Task<void> write(Prng& prng, bool compressed) {
    const auto [offset, length] = draw_range(prng, compressed || prng.one_in(2));
    const Token token = oracle_.fresh_token();
    std::vector<std::byte> data(length);
    fill_sectors(data, offset, token);
    RangeLock::Request writing(bytes_, offset, offset + length, RangeLock::Mode::shared);
    co_await writing;
    const uint64_t change = oracle_.begin_change(offset, length, token);
    const bool fua = prng.one_in(32);
    co_await image_->write(offset, data, {.fua = fua, .compressed = compressed})
        .doing("write at ", offset);
    oracle_.end_change(change, true, fua);
    if (compressed) compressed_ += length;
  }

  Task<void> zero(Prng& prng) {
    const auto [offset, length] = draw_range(prng, prng.one_in(2));
    RangeLock::Request writing(bytes_, offset, offset + length, RangeLock::Mode::shared);
    co_await writing;
    const uint64_t change = oracle_.begin_change(offset, length, 0);
    co_await image_->zero(offset, length, {.may_unmap = prng.one_in(2)}).doing("zero at ", offset);
    oracle_.end_change(change, true, false);
  }

  /// Whole clusters, many of them, in pieces that begin together.
  Task<void> storm(Prng& prng) {
    const uint64_t pieces = prng.between(1, 16);
    const uint64_t length = prng.between(1, std::max<uint64_t>(1 * MiB / cluster(), 1)) * cluster();
    Scope scope(reactor_.ready());
    for (uint64_t i = 0; i < pieces; ++i) {
      scope.spawn(discard(prng.below((kDisk - length) / cluster() + 1) * cluster(), length));
    }
    co_await scope.join();
  }

  Task<void> discard(uint64_t offset, uint64_t length) {
    const uint64_t change = oracle_.begin_change(offset, length, 0);
    co_await image_->discard(offset, length, {}).doing("discard at ", offset);
    oracle_.end_change(change, true, false);
  }

  Task<void> read(Prng& prng) {
    const auto [offset, length] = draw_range(prng, prng.one_in(2));
    co_await read_and_check(offset, length);
  }

  Task<void> read_and_check(uint64_t offset, uint64_t length) {
    std::vector<std::byte> data(length);
    RangeLock::Request reading(bytes_, offset, offset + length, RangeLock::Mode::exclusive);
    co_await reading;
    const uint64_t read = oracle_.begin_read();
    co_await image_->read(offset, data, IoTag::read_guest).doing("read at ", offset);
    co_await oracle_.end_read(read, offset, data);
  }

  Task<void> read_all() {
    for (uint64_t at = 0; at < kDisk; at += 2 * MiB) co_await read_and_check(at, 2 * MiB);
  }

  // --- Snapshots --------------------------------------------------------------------------------

  Task<void> keep_snapshots(uint64_t seed) {
    Prng prng(seed);
    while (!over()) {
      co_await reactor_.sleep(static_cast<int64_t>(prng.between(50, 600)) * kMillisecond);
      const uint64_t what = prng.below(4);
      if (what < 2 && copies_.size() < kSnapshotsMax) {
        co_await make();
      } else if (what == 2 && !copies_.empty()) {
        co_await apply(copies_[prng.below(copies_.size())]);
      } else if (!copies_.empty()) {
        co_await drop(prng.below(copies_.size()));
      }
    }
  }

  Task<void> make() {
    const std::string name = cat("copy ", ++snapshots_made_);
    const uint64_t began = oracle_.begin_read();
    Result<void> made = co_await image_->create_snapshot({.name = name}).result();
    Oracle::Contents contents = oracle_.contents_since(began, 0, kDisk);
    oracle_.end_read(began);
    // Narrow refcounts with packed streams: refused before anything changed.
    if (!made && made.error().code() == Errc::invalid) co_return;
    co_await std::move(made).doing("make ", quoted(name));
    copies_.push_back({name, std::move(contents)});
    co_await look(copies_.back());
  }

  /// C5: it holds what the disk held when it was made.
  Task<void> look(const Copy& copy) {
    ImageOptions options = shape_.open;
    options.writable = false;
    options.snapshot = copy.name;
    std::unique_ptr<Image> image = co_await Image::open(reactor_, opener_, path_, options);
    Result<void> right;
    for (uint64_t at = 0; right && at < kDisk; at += 2 * MiB) {
      std::vector<std::byte> data(2 * MiB);
      right = co_await image->read(at, data, IoTag::read_guest).result();
      if (!right) break;
      const auto first = copy.contents.begin() + static_cast<std::ptrdiff_t>(at / kSectorSize);
      right = Oracle::check_copy(at, data, {first, first + 2 * MiB / kSectorSize});
    }
    co_await image->close();
    co_await std::move(right).doing("snapshot ", quoted(copy.name));
  }

  Task<void> apply(const Copy& copy) {
    const uint64_t change = oracle_.begin_restore(0, copy.contents);
    Result<void> applied = co_await image_->apply_snapshot({copy.name}).result();
    const bool refused = !applied && applied.error().code() == Errc::invalid;
    if (!refused) co_await std::move(applied).doing("apply ", quoted(copy.name));
    oracle_.end_change(change, !refused, true);
  }

  Task<void> drop(size_t which) {
    co_await look(copies_[which]);
    co_await image_->delete_snapshot({copies_[which].name})
        .doing("delete ", quoted(copies_[which].name));
    copies_.erase(copies_.begin() + static_cast<std::ptrdiff_t>(which));
  }

  Task<void> drop_snapshots() {
    while (!copies_.empty()) co_await drop(0);
  }

  // --- Space ------------------------------------------------------------------------------------

  uint64_t file_length() const {
    struct stat status{};
    BYRE_ASSERT(::stat(path_.c_str(), &status) == 0);
    return static_cast<uint64_t>(status.st_size);
  }

  Task<void> judge() {
    std::unique_ptr<File> file = co_await opener_.open(path_, {.lock = false});
    RawDevice device(std::move(file));
    const CheckReport report = co_await check_image(device, {.streams = true, .decode = true});
    co_await device.close();
    for (const Finding& finding : report.findings) {
      co_await fail(corrupt("the check: ", finding.text));
    }
    if (report.corruptions + report.leaks + report.check_errors != 0) {
      co_await fail(corrupt("the check counts ", report.corruptions, " corruptions, ", report.leaks,
                            " leaks"));
    }
    length_ = file_length();
    if (length_ > most_in_use_ + kSlack) {
      co_await fail(corrupt("the file has ", length_, " bytes; never were more than ", most_in_use_,
                            " in use"));
    }
  }

  Reactor& reactor_;
  FileOpener& opener_;
  std::string path_;
  Shape shape_;
  Prng prng_;
  int64_t time_;
  int64_t end_ = 0;
  Oracle oracle_{kDisk};
  /// The page cache copies less than a sector at a time, so who reads what is being written may see
  /// a mixture; only reads beside discards, snapshots and writes elsewhere say something.
  RangeLock bytes_{reactor_.ready()};
  std::unique_ptr<Image> image_;
  std::vector<Copy> copies_;
  uint64_t requests_ = 0, compressed_ = 0, snapshots_made_ = 0;
  uint64_t in_use_ = 0, most_in_use_ = 0, length_ = 0;  ///< Clusters; bytes; bytes.
};

int soak(std::string folder, uint64_t seed, int64_t seconds) {
  Result<std::unique_ptr<Reactor>> reactor = make_reactor();
  if (!reactor) return std::fprintf(stderr, "%s\n", reactor.error().message().c_str()), 1;
  SystemGate opener(**reactor, OpenPolicy::nothing);
  const std::string path = folder + "/soak.qcow2";
  const int64_t end = (*reactor)->now().ns + seconds * kSecond;
  Prng prng(seed);
  for (int round = 1;; ++round) {
    const int64_t left = end - (*reactor)->now().ns;
    if (left <= 0 && round > 1) break;
    Shape shape = draw_shape(prng);
    const uint64_t own = prng.next();
    std::printf("round %d: %s\n", round, shape.text.c_str());
    std::fflush(stdout);
    Round here(**reactor, opener, path, std::move(shape), own,
               std::clamp<int64_t>(left, kSecond, kRound));
    if (Result<void> played = (*reactor)->run(here.play()); !played) {
      std::printf("FAILED --seed %llu, round %d: %s\n  the image: %s\n",
                  static_cast<unsigned long long>(seed), round, played.error().message().c_str(),
                  path.c_str());
      std::fflush(stdout);
      std::_Exit(1);  // Clients may still be under way.
    }
  }
  ::unlink(path.c_str());
  std::printf("nothing was found\n");
  return 0;
}

}  // namespace
}  // namespace byre

int main(int argc, char** argv) {
  if (!byre::open_standard_descriptors()) return 2;
  uint64_t seed = 1;
  int64_t seconds = 60;
  std::string folder;
  for (int i = 1; i < argc; ++i) {
    const std::string_view word = argv[i];
    const auto number = [&](auto& value) {
      if (++i == argc) return false;
      const std::string_view text = argv[i];
      const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
      return error == std::errc() && end == text.data() + text.size();
    };
    bool right = true;
    if (word == "--seed") {
      right = number(seed);
    } else if (word == "--seconds") {
      right = number(seconds);
    } else if (folder.empty() && !word.starts_with("-")) {
      folder = word;
    } else {
      right = false;
    }
    if (!right) folder.clear();
    if (!right) break;
  }
  if (folder.empty()) {
    std::fprintf(stderr, "byre-soak [--seconds N] [--seed S] FOLDER\n");
    return 2;
  }
  return byre::soak(folder, seed, seconds);
}
