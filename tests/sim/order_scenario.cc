// SPDX-License-Identifier: Apache-2.0
/// An image that allocates in the order of its requests (ImageOptions::allocate_in_order) is the
/// same to the byte, however long each operation takes and whichever coroutine goes on first.
///
/// A list of requests is drawn: writes, zeros and compressed writes, in one round, or writes and
/// zeros in up to three, up to eight at a time, begun in order; those of a round meet nowhere.  It
/// is played on the same new image with other delays each time.  Each file is sound and without
/// leaks, shows what was written, and holds the same bytes as the first.
#include <algorithm>
#include <memory>

#include "block/raw.h"
#include "checker.h"
#include "coro/semaphore.h"
#include "oracle.h"
#include "qcow2/image.h"
#include "qcow2/ops/create.h"
#include "scenarios.h"

namespace byre {

namespace {

using Contents = std::vector<std::byte>;

struct Request {
  enum class Kind : uint8_t { write, zero, compressed } kind;
  uint64_t at;
  uint64_t length;
  bool last = false;  ///< Of its round: nothing begins before it has ended.
};

class OrderRun {
 public:
  OrderRun(uint64_t seed, Verdict& verdict)
      : seed_(seed), prng_(seed * 64 + 35), verdict_(verdict) {}

  void run() {
    draw_image();
    const uint64_t rounds = prng_.between(1, 3);
    for (uint64_t i = 0; i < rounds; ++i) draw_round(rounds == 1 ? 3 : 2);
    const std::vector<std::byte> first = play(1);
    for (uint64_t turn = 2; turn <= 5 && verdict_.failure.empty(); ++turn) {
      const std::vector<std::byte> other = play(turn);
      if (!verdict_.failure.empty() || other == first) continue;
      const auto [at, there] =
          std::mismatch(first.begin(), first.end(), other.begin(), other.end());
      fail(cat("with delays ", turn, " the file of ", other.size(),
               " bytes differs from the first, of ", first.size(), " bytes, at ",
               hex(static_cast<uint64_t>(at - first.begin()))));
    }
  }
  uint64_t hash() const { return hash_; }

 private:
  void fail(std::string why) {
    if (!verdict_.failure.empty()) return;
    verdict_.failure = cat("seed ", seed_, ": ", why, "; clusters of ", create_.cluster_size,
                           create_.extended_l2 ? ", extended" : "",
                           create_.backing_file.empty() ? "" : ", over a backing file", ", ",
                           requests_.size(), " requests");
    verdict_.disks = disks_;
  }

  void draw_image() {
    create_.size = prng_.between(64, 2048) * KiB / 2;
    create_.cluster_size = uint64_t{512} << prng_.below(8);
    if (prng_.one_in(4)) {
      create_.extended_l2 = true;
      create_.cluster_size = 16 * KiB << prng_.below(3);
    }
    if (prng_.one_in(3)) {
      create_.backing_file = "backing";
      create_.backing_format = "raw";
    }
    shows_.resize(create_.size);
    if (!create_.backing_file.empty()) {
      below_.resize(prng_.between(1, create_.size / kSectorSize) * kSectorSize);
      fill_sectors(below_, 0, ++tokens_);
      std::ranges::copy(below_, shows_.begin());
    }
    at_once_ = prng_.between(2, 8);
    table_cache_size_ = prng_.one_in(2) ? 8 * KiB : 32 * MiB;
    staged_max_ = prng_.one_in(3) ? prng_.between(1, 16) : 64 * KiB;
  }

  /// Pieces of the disk that meet nowhere, some left out, in the order of the disk or in any.
  void draw_round(uint64_t kinds) {
    const uint64_t cluster = create_.cluster_size;
    const uint64_t longest = std::max<uint64_t>(create_.size / 12, 2 * cluster);
    std::vector<Request> round;
    for (uint64_t at = 0; at < create_.size;) {
      const uint64_t left = create_.size - at;
      uint64_t length = std::min(left, prng_.between(1, longest / kSectorSize) * kSectorSize);
      auto kind = static_cast<Request::Kind>(prng_.below(kinds));
      if (kind == Request::Kind::compressed) {
        at = round_up(at, cluster);
        if (at >= create_.size) break;
        length = std::min(create_.size - at, round_up(length, cluster));
      }
      if (!prng_.one_in(4)) round.push_back({.kind = kind, .at = at, .length = length});
      at += length;
    }
    if (prng_.one_in(2)) {
      for (size_t i = round.size(); i > 1; --i) std::swap(round[i - 1], round[prng_.below(i)]);
    }
    if (round.empty()) return;
    round.back().last = true;
    requests_.insert(requests_.end(), round.begin(), round.end());
  }

  static void fill_sectors(MutableBytes bytes, uint64_t at, Token token) {
    for (uint64_t done = 0; done < bytes.size(); done += kSectorSize) {
      const uint64_t length = std::min<uint64_t>(kSectorSize, bytes.size() - done);
      std::vector<std::byte> sector(kSectorSize);
      fill_sector(sector, (at + done) / kSectorSize, token);
      std::copy_n(sector.begin(), length, bytes.begin() + static_cast<std::ptrdiff_t>(done));
    }
  }

  std::vector<std::byte> play(uint64_t turn) {
    disks_ = {};
    disks_["image"].put(0, {});
    disks_["backing"].put(0, below_);
    SimReactor reactor(
        {.seed = seed_ * 8 + turn, .delays = {.late_one_in = turn % 2 == 0 ? 10u : 0u}});
    SimGate opener(reactor, disks_);
    Contents model = shows_;
    const Result<void> done = reactor.finish(fill(reactor, opener, model));
    ++verdict_.histories;
    verdict_.deliveries += reactor.steps();
    hash_ ^= reactor.trace().hash() + turn;
    const SimDisk& disk = disks_["image"];
    if (!done) {
      fail(done.error().message());
    } else if (const ImageVerdict found = check_bytes(disk); !found.sound() || found.leaks != 0) {
      fail(found.text());
    }
    return disk.read(0, disk.size());
  }

  Task<void> fill(Reactor& reactor, FileOpener& opener, Contents& model) {
    auto file = std::make_unique<RawDevice>(co_await opener.open("image", {.writable = true}),
                                            RawOptions{.growable = true});
    co_await create_image(*file, create_);
    const std::unique_ptr<Image> image =
        co_await Image::open_over(std::move(file), opener,
                                  {.writable = true,
                                   .table_cache_size = table_cache_size_,
                                   .staged_max = staged_max_,
                                   .allocate_in_order = true,
                                   .reuse_freed = false,
                                   .scan = ImageOptions::Scan::never});
    Token token = 100;
    Semaphore slots(reactor.ready(), at_once_);
    {
      Scope scope(reactor.ready());
      for (const Request& request : requests_) {
        Semaphore::Hold slot = co_await slots.acquire();
        scope.spawn(perform(*image, request, ++token, model, std::move(slot)));
        if (request.last) co_await scope.join();
      }
      co_await scope.join();
    }
    Contents read(image->size());
    co_await image->read(0, read, IoTag::read_guest);
    co_await image->close();
    if (read != model) {
      const auto [at, other] = std::mismatch(read.begin(), read.end(), model.begin());
      co_await byre::fail(Error(Errc::corrupt, cat("the disk reads wrong at ",
                                                   hex(static_cast<uint64_t>(at - read.begin())))));
    }
  }

  Task<void> perform(Image& image, const Request& request, Token token, Contents& model,
                     Semaphore::Hold) {
    ++verdict_.requests;
    const MutableBytes shown = MutableBytes(model).subspan(request.at, request.length);
    if (request.kind == Request::Kind::zero) {
      std::ranges::fill(shown, std::byte{});
      co_await image.zero(request.at, request.length, {.may_unmap = token % 2 == 0});
      co_return;
    }
    fill_sectors(shown, request.at, token);
    co_await image.write(request.at, Bytes(shown),
                         {.compressed = request.kind == Request::Kind::compressed});
  }

  const uint64_t seed_;
  Prng prng_;
  Verdict& verdict_;
  CreateOptions create_;
  Contents below_;
  Contents shows_;  ///< The image when it is new.
  std::vector<Request> requests_;
  uint64_t at_once_ = 1;
  uint64_t table_cache_size_ = 0;
  uint64_t staged_max_ = 0;
  Token tokens_ = 0;
  SimDisks disks_;
  uint64_t hash_ = 0;
};

}  // namespace

Verdict play_in_order(uint64_t seed, const RunOptions&) {
  Verdict verdict;
  OrderRun run(seed, verdict);
  run.run();
  verdict.hash = run.hash();
  return verdict;
}

}  // namespace byre
