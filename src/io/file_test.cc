// SPDX-License-Identifier: Apache-2.0
#include "io/file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <fstream>
#include <functional>

#include "base/units.h"
#include "io/buffer.h"
#include "io/io_testing.h"

namespace byre {
namespace {

constexpr FileOptions kNew{.writable = true, .create = true};

std::vector<std::byte> bytes_of_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  const Bytes bytes = bytes_of(std::string_view(text));
  return {bytes.begin(), bytes.end()};
}

class FileTest : public IoTest {
 protected:
  std::vector<std::byte> read(File& file, uint64_t offset, size_t size) {
    std::vector<std::byte> data(size, std::byte{0xee});
    run(file.read(offset, data));
    return data;
  }
};
ON_EVERY_REACTOR(FileTest);

TEST_P(FileTest, WhatIsWrittenIsReadAndBeyondTheEndAreZeros) {
  auto file = open("f", kNew);
  const std::vector<std::byte> data = noise(10000);
  run(file->write(5, data));
  EXPECT_EQ(file->size(), 10005u);
  std::vector<std::byte> expected(20000);
  std::copy(data.begin(), data.end(), expected.begin() + 5);
  EXPECT_EQ(read(*file, 0, 20000), expected);
  EXPECT_EQ(read(*file, 1 << 30, 100), std::vector<std::byte>(100));
  run(file->write(3, data, true));
  run(file->sync());
  EXPECT_EQ(read(*file, 3, data.size()), data);
}

/// `data` in pieces of 0, 1, 2, 4, ... bytes, which lie apart in memory.
struct Pieces {
  explicit Pieces(size_t size) {
    size_t next = 0;
    for (size_t left = size; left > 0;) {
      parts.emplace_back(std::min(next, left));
      left -= parts.back().size();
      next = next == 0 ? 1 : 2 * next;
    }
    for (std::vector<std::byte>& part : parts) vec.push_back({part.data(), part.size()});
  }
  std::vector<std::vector<std::byte>> parts;
  std::vector<iovec> vec;
};

TEST_P(FileTest, PiecesOfMemoryAreOneRequest) {
  for (const bool direct : {false, true}) {
    auto file = open("f", {.writable = true, .direct = direct, .create = true, .replace = true});
    const std::vector<std::byte> data = noise(10000);
    Pieces out(data.size());
    scatter(data, out.vec);
    run(file->write_pieces(5, out.vec));
    EXPECT_EQ(read(*file, 5, data.size()), data);
    run(file->write_pieces(3, out.vec, true));
    Pieces in(data.size() + 20000);  // Passes the end of the file.
    run(file->read_pieces(3, in.vec));
    std::vector<std::byte> found(data.size() + 20000);
    gather(in.vec, 0, found);
    std::vector<std::byte> expected(found.size());
    std::copy(data.begin(), data.end(), expected.begin());
    std::copy(data.end() - 2, data.end(), expected.begin() + 10000);  // Of the first write.
    EXPECT_TRUE(found == expected);
    run(file->read_pieces(0, {}));
    run(file->write_pieces(0, {}));
  }
  EXPECT_EQ(error_of(open("f", {})->write_pieces(0, Pieces(10).vec)).code(), Errc::read_only);
}

// More than one call takes (IOV_MAX).
TEST_P(FileTest, ThereMayBeAnyNumberOfPieces) {
  auto file = open("f", kNew);
  std::vector<std::byte> data = noise(3000);
  std::vector<iovec> vec;
  for (std::byte& byte : data) vec.push_back({&byte, 1});
  run(file->write_pieces(100, vec));
  EXPECT_EQ(read(*file, 100, data.size()), data);
  const std::vector<std::byte> before = std::exchange(data, std::vector<std::byte>(3000));
  for (size_t i = 0; i < data.size(); ++i) vec[i].iov_base = &data[i];
  run(file->read_pieces(100, vec));
  EXPECT_EQ(data, before);
}

TEST_P(FileTest, OpeningRefusesWhatIsNoFile) {
  const auto refused = [&](const std::string& path) {
    Result<std::unique_ptr<File>> file = File::open(reactor(), path, {});
    ASSERT_FALSE(file) << path;
    EXPECT_EQ(file.error().code(), Errc::invalid) << file.error().message();
  };
  refused("/dev/zero");
  refused(folder_.path());
  ASSERT_EQ(mkfifo((folder_ / "fifo").c_str(), 0600), 0);
  refused(folder_ / "fifo");
  Result<std::unique_ptr<File>> missing = File::open(reactor(), folder_ / "missing", {});
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code(), Errc::not_found);
}

// A disk of no bytes, which everybody may use at a time, and which cannot be lost.
TEST_P(FileTest, TheNullDeviceIsAFileOfNothing) {
  const auto open_null = [&](FileOptions options) {
    Result<std::unique_ptr<File>> opened = File::open(reactor(), "/dev/null", options);
    EXPECT_TRUE(opened) << opened.error().message();
    return *std::move(opened);
  };
  const auto file = open_null({.writable = true, .create = true, .replace = true, .lock = true});
  const auto other = open_null({.writable = true, .direct = true, .lock = true});
  EXPECT_EQ(file->size(), 0u);
  EXPECT_TRUE(file->properties().block_device);  // It does not grow.
  EXPECT_FALSE(file->properties().locked);
  run(file->sync());
  run(other->sync());
  EXPECT_EQ(read(*file, 0, 100), std::vector<std::byte>(100));
  EXPECT_FALSE(reactor().run(file->truncate(512)));
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/null"));
}

TEST_P(FileTest, CreatingDoesNotReplaceUnlessTold) {
  run(open("f", kNew)->write(0, noise(100)));
  Result<std::unique_ptr<File>> again = File::open(reactor(), folder_ / "f", kNew);
  ASSERT_FALSE(again);
  EXPECT_EQ(again.error().code(), Errc::exists);
  auto file = open("f", {.writable = true, .create = true, .replace = true});
  EXPECT_EQ(file->size(), 0u);
  EXPECT_EQ(std::filesystem::file_size(folder_ / "f"), 0u);
}

TEST_P(FileTest, AReadOnlyFileIsNotWritten) {
  open("f", kNew);
  auto file = open("f", {});
  EXPECT_EQ(error_of(file->write(0, noise(10))).code(), Errc::read_only);
  EXPECT_EQ(error_of(file->truncate(5)).code(), Errc::read_only);
  EXPECT_EQ(error_of(file->punch(0, 5)).code(), Errc::read_only);
  run(file->sync());
}

TEST_P(FileTest, HolesZerosAndAllocationKeepTheirPromises) {
  auto file = open("f", kNew);
  std::vector<std::byte> model = noise(1 << 20);
  run(file->write(0, model));
  run(file->punch(100000, 300000));
  std::fill_n(model.begin() + 100000, 300000, std::byte{0});
  EXPECT_EQ(read(*file, 0, model.size()), model);

  run(file->zero(500000, 100000));
  std::fill_n(model.begin() + 500000, 100000, std::byte{0});
  EXPECT_EQ(read(*file, 0, model.size()), model);

  run(file->zero((1 << 20) - 1000, 5000));  // Beyond the end it extends.
  std::fill_n(model.end() - 1000, 1000, std::byte{0});
  model.resize((1 << 20) + 4000);
  EXPECT_EQ(file->size(), model.size());
  EXPECT_EQ(std::filesystem::file_size(folder_ / "f"), model.size());
  EXPECT_EQ(read(*file, 0, model.size()), model);

  run(file->allocate(0, 2 << 20));
  model.resize(2 << 20);
  EXPECT_EQ(std::filesystem::file_size(folder_ / "f"), model.size());
  EXPECT_EQ(read(*file, 0, model.size()), model);
  struct stat status;
  ASSERT_EQ(stat((folder_ / "f").c_str(), &status), 0);
  EXPECT_GE(status.st_blocks * 512, 2 << 20);

  run(file->truncate(1000));
  EXPECT_EQ(file->size(), 1000u);
  EXPECT_EQ(std::filesystem::file_size(folder_ / "f"), 1000u);
}

TEST_P(FileTest, ExtentsTellDataFromHoles) {
  auto file = open("f", kNew);
  run(file->truncate(4 * MiB));
  run(file->write(1 * MiB, noise(1 * MiB)));
  run(file->sync());
  const auto extent = [&](uint64_t offset, uint64_t length) {
    return run(file->extent(offset, length));
  };
  EXPECT_FALSE(extent(0, 4 * MiB).data);
  EXPECT_EQ(extent(0, 4 * MiB).length, 1 * MiB);
  EXPECT_TRUE(extent(1 * MiB, 3 * MiB).data);
  EXPECT_EQ(extent(1 * MiB, 3 * MiB).length, 1 * MiB);
  EXPECT_EQ(extent(1 * MiB + 5, 100).length, 100u);
  EXPECT_FALSE(extent(2 * MiB, 2 * MiB).data);
  EXPECT_EQ(extent(2 * MiB, 2 * MiB).length, 2 * MiB);
}

TEST_P(FileTest, ExtentsOfAFileThatIsOnlyReadAreThoseOfTheFile) {
  auto file = open("f", kNew);
  run(file->truncate(20 * MiB));
  for (uint64_t at = 0; at < 200; at += 2) run(file->write(at * 64 * KiB, noise(64 * KiB)));
  run(file->sync());
  const auto extents = [&](File& from, uint64_t step) {
    std::vector<std::pair<uint64_t, bool>> found;  // Where each ends.
    for (uint64_t at = 0; at < 20 * MiB;) {
      const File::Extent one = run(from.extent(at, std::min(step, 20 * MiB - at)));
      at += one.length;
      if (!found.empty() && found.back().second == one.data) found.pop_back();
      found.emplace_back(at, one.data);
    }
    return found;
  };
  const auto before = extents(*file, 20 * MiB);
  EXPECT_EQ(before.size(), 200u);
  file.reset();
  auto reader = open("f", {});
  EXPECT_EQ(extents(*reader, 20 * MiB), before);
  EXPECT_EQ(extents(*reader, 48 * KiB), before);
  // Nothing is known any more when it was written.
  ASSERT_TRUE(reader->reopen(true));
  run(reader->write(64 * KiB, noise(64 * KiB)));
  run(reader->punch(0, 64 * KiB));
  EXPECT_FALSE(run(reader->extent(0, 64 * KiB)).data);
  ASSERT_TRUE(reader->reopen(false));
  EXPECT_FALSE(run(reader->extent(0, 64 * KiB)).data);
  EXPECT_TRUE(run(reader->extent(64 * KiB, 64 * KiB)).data);
}

TEST_P(FileTest, AFileThatIsTooLargeSaysSo) {
  signal(SIGXFSZ, SIG_IGN);
  rlimit before;
  getrlimit(RLIMIT_FSIZE, &before);
  auto file = open("f", kNew);
  const rlimit small{100000, before.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  const Error error = error_of(file->write(90000, noise(20000)));
  setrlimit(RLIMIT_FSIZE, &before);
  EXPECT_EQ(error.sys_errno(), EFBIG);
  EXPECT_EQ(error_of(file->write(~uint64_t{0} - 5, noise(10))).sys_errno(), EFBIG);
}

// --- O_DIRECT ----------------------------------------------------------------------------------

TEST_P(FileTest, ODirectTakesAnyOffsetLengthAndMemory) {
  Result<std::unique_ptr<File>> opened =
      File::open(reactor(), folder_ / "f", {.writable = true, .direct = true, .create = true});
  if (!opened) GTEST_SKIP() << opened.error().message();
  File& file = **opened;
  EXPECT_GE(file.properties().block_size, 512u);
  Prng prng(3);
  std::vector<std::byte> model;
  for (int i = 0; i < 200; ++i) {
    const uint64_t offset = prng.below(3 * MiB);
    const uint64_t size = 1 + prng.below(prng.one_in(20) ? 2 * MiB : 10000);
    const std::vector<std::byte> data = noise(size + 1, prng.next());
    run(file.write(offset, Bytes(data).subspan(1), prng.one_in(4)));
    if (model.size() < offset + size) model.resize(offset + size);
    std::copy(data.begin() + 1, data.end(), model.begin() + static_cast<ptrdiff_t>(offset));
    EXPECT_EQ(file.size(), model.size());
    const uint64_t at = prng.below(model.size());
    const uint64_t count = 1 + prng.below(100000);
    std::vector<std::byte> expected(count);
    const uint64_t there = std::min(count, model.size() - at);
    std::copy_n(model.begin() + static_cast<ptrdiff_t>(at), there, expected.begin());
    ASSERT_EQ(read(file, at, count), expected);
  }
  run(file.punch(1000, 5000));
  std::fill_n(model.begin() + 1000, 5000, std::byte{0});
  run(file.truncate(100001));
  model.resize(100001);
  EXPECT_EQ(read(file, 0, 100001), model);
  EXPECT_EQ(bytes_of_file(folder_ / "f"), model);
}

/// Whatever the file system wants, the file is treated as if it had this block size.
class BlockTest : public IoTest {
 protected:
  std::unique_ptr<File> open_with_blocks(uint32_t block_size) {
    const std::string path = folder_ / "f";
    const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    return std::make_unique<File>(reactor(), File::Properties{.name = path,
                                                              .fd = fd,
                                                              .block_size = block_size,
                                                              .memory_alignment = block_size,
                                                              .writable = true});
  }
};
ON_EVERY_REACTOR(BlockTest);

// Each writer has bytes of its own, so that the model needs no order; but blocks are shared, and a
// lost update would be seen.
TEST_P(BlockTest, UnalignedWritersToOneBlockLoseNothing) {
  for (const uint32_t block : {512u, 4096u}) {
    for (uint64_t seed = 0; seed < 10; ++seed) {
      auto file = open_with_blocks(block);
      run(file->truncate(0));
      constexpr size_t kSize = 64 * 1024;
      std::vector<std::byte> model(kSize);
      const auto writer = [](File& f, std::vector<std::byte>& m, uint64_t first, uint64_t end,
                             uint64_t s) -> Task<void> {
        Prng prng(s);
        for (int i = 0; i < 20; ++i) {
          const uint64_t offset = first + prng.below(end - first);
          const uint64_t size = 1 + prng.below(end - offset);
          const std::vector<std::byte> data = noise(size, prng.next());
          std::copy(data.begin(), data.end(), m.begin() + static_cast<ptrdiff_t>(offset));
          co_await f.write(offset, data, prng.one_in(10));
        }
      };
      const auto all = [&](Reactor& reactor) -> Task<void> {
        Prng prng(seed);
        Scope scope(reactor.ready());
        for (uint64_t first = 0; first < kSize;) {
          // Whole blocks at times: aligned writers go beside each other and beside the others.
          uint64_t size = prng.one_in(3) ? block : 1 + prng.below(2 * block);
          size = std::min(size, kSize - first);
          scope.spawn(writer(*file, model, first, first + size, prng.next()));
          first += size;
        }
        co_await scope.join();
      };
      run(all(reactor()));
      std::vector<std::byte> found(kSize);
      run(file->read(0, found));
      ASSERT_EQ(found, model) << "block " << block << " seed " << seed;
    }
  }
}

TEST_P(BlockTest, ATruncationIsNotUndoneByAWriteToTheLastBlock) {
  auto file = open_with_blocks(4096);
  run(file->write(0, noise(3 * 4096)));
  const auto all = [](File& f) -> Task<void> {
    Scope scope(f.reactor().ready());
    const std::vector<std::byte> data = noise(10);
    scope.spawn(f.write(5000, data));
    scope.spawn(f.truncate(5010));
    scope.spawn(f.write(100, data));
    co_await scope.join();
  };
  run(all(*file));
  EXPECT_EQ(std::filesystem::file_size(folder_ / "f"), 5010u);
}

// --- What goes wrong ---------------------------------------------------------------------------

/// A Reactor in front of a real one that answers some Ops itself.
class FaultyReactor final : public Reactor {
 public:
  explicit FaultyReactor(Reactor& real) : real_(real) {}
  Instant now() const override { return real_.now(); }
  uint64_t random() override { return real_.random(); }
  void submit(Op& op) override {
    log.push_back(op.kind);
    if (const std::optional<int64_t> result = on_submit ? on_submit(op) : std::nullopt) {
      op.result = *result;
      ready().push(op.waiter);
    } else {
      real_.submit(op);
    }
  }
  void cancel(Op& op) override { real_.cancel(op); }
  void turn(Wait wait) override {
    real_.turn(ready().empty() ? wait : Wait::no);
    for (size_t left = ready().size(); left > 0; --left) ready().pop().resume();
  }
  /// The result of an Op, or nothing to let it through.
  std::function<std::optional<int64_t>(Op&)> on_submit;
  std::vector<Op::Kind> log;

 private:
  Reactor& real_;
};

/// The first `length` bytes of a transfer in pieces.
int64_t part_of(const Op& op, uint64_t length) {
  std::vector<std::byte> bytes(length);
  const auto at = static_cast<off_t>(op.offset);
  if (op.kind == Op::Kind::write) {
    gather(op.pieces, 0, bytes);
    return pwrite(op.fd, bytes.data(), length, at);
  }
  const ssize_t got = pread(op.fd, bytes.data(), length, at);
  scatter(Bytes(bytes).first(static_cast<size_t>(std::max<ssize_t>(got, 0))), op.pieces);
  return got;
}

class FaultTest : public IoTest {
 protected:
  void SetUp() override {
    IoTest::SetUp();
    if (IsSkipped()) return;
    faulty_ = std::make_unique<FaultyReactor>(reactor());
    Result<std::unique_ptr<File>> file = File::open(*faulty_, folder_ / "f", kNew);
    ASSERT_TRUE(file);
    file_ = *std::move(file);
  }
  template <class T>
  Result<T> attempt(Task<T> task) {
    return faulty_->run(std::move(task));
  }
  size_t count(Op::Kind kind) const {
    return static_cast<size_t>(std::count(faulty_->log.begin(), faulty_->log.end(), kind));
  }
  std::unique_ptr<FaultyReactor> faulty_;
  std::unique_ptr<File> file_;
};
ON_EVERY_REACTOR(FaultTest);

TEST_P(FaultTest, ShortAndInterruptedTransfersAreFinished) {
  for (const uint32_t block : {1u, 512u, 4096u}) {
    File::Properties properties = file_->properties();
    properties.fd = dup(properties.fd);
    properties.block_size = properties.memory_alignment = block;
    File file(*faulty_, properties);
    Prng prng(block);
    faulty_->on_submit = [&](Op& op) -> std::optional<int64_t> {
      if (op.kind != Op::Kind::read && op.kind != Op::Kind::write) return std::nullopt;
      switch (prng.below(4)) {
        case 0:
          return -EINTR;
        case 1:
          return -EAGAIN;
        case 2: {
          // Inside a block O_DIRECT never stops, but at the end of a file.
          const uint64_t length = round_up(1 + prng.below(op.length), block);
          const auto at = static_cast<off_t>(op.offset);
          if (!op.pieces.empty()) return part_of(op, length);
          return op.kind == Op::Kind::read ? pread(op.fd, op.buffer, length, at)
                                           : pwrite(op.fd, op.buffer, length, at);
        }
        default:
          return std::nullopt;
      }
    };
    const std::vector<std::byte> data = noise(100000, block);
    ASSERT_TRUE(attempt(file.write(777, data)));
    std::vector<std::byte> found(data.size());
    ASSERT_TRUE(attempt(file.read(777, found)));
    EXPECT_TRUE(found == data) << block;

    const Buffer apart(64 * KiB);
    std::vector<iovec> pieces;
    for (size_t at = 0; at < apart.size(); at += 16 * KiB) {
      pieces.push_back(piece_of(apart.bytes().subspan(at, 16 * KiB)));
    }
    std::swap(pieces.front(), pieces.back());
    scatter(Bytes(data).first(64 * KiB), pieces);
    ASSERT_TRUE(attempt(file.write_pieces(4096, pieces)));
    fill_zero(apart.bytes());
    ASSERT_TRUE(attempt(file.read_pieces(4096, pieces)));
    std::vector<std::byte> gathered(64 * KiB);
    gather(pieces, 0, gathered);
    EXPECT_TRUE(equal(gathered, Bytes(data).first(64 * KiB))) << block;
  }
}

TEST_P(FaultTest, ADiskThatNeverGoesOnIsAnErrorNotAHang) {
  faulty_->on_submit = [](Op& op) -> std::optional<int64_t> {
    if (op.kind == Op::Kind::timer) op.deadline = {};
    if (op.kind == Op::Kind::read) return -EAGAIN;
    if (op.kind == Op::Kind::write) return 0;
    return std::nullopt;
  };
  std::vector<std::byte> data(100);
  Result<void> read = attempt(file_->read(0, data));
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().sys_errno(), EAGAIN);
  Result<void> written = attempt(file_->write(0, data));
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().sys_errno(), EIO);
}

TEST_P(FaultTest, AFailedSyncLatches) {
  const std::vector<std::byte> data = noise(100);
  ASSERT_TRUE(attempt(file_->write(0, data)));
  faulty_->on_submit = [](Op& op) -> std::optional<int64_t> {
    return op.kind == Op::Kind::sync ? std::optional<int64_t>(-EIO) : std::nullopt;
  };
  EXPECT_FALSE(attempt(file_->sync()));
  EXPECT_TRUE(file_->latched());
  faulty_->on_submit = nullptr;  // The kernel has told; now it would say that all is well.
  faulty_->log.clear();
  for (const Result<void>& result :
       {attempt(file_->sync()), attempt(file_->write(0, data)),
        attempt(file_->write(0, data, true)), attempt(file_->truncate(5)),
        attempt(file_->punch(0, 5)), attempt(file_->zero(0, 5)), attempt(file_->allocate(0, 5))}) {
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().code(), Errc::io);
    EXPECT_EQ(result.error().sys_errno(), EIO);
  }
  EXPECT_TRUE(faulty_->log.empty());
  std::vector<std::byte> found(100);
  ASSERT_TRUE(attempt(file_->read(0, found)));
  EXPECT_EQ(found, data);
}

TEST_P(FaultTest, AFailedWriteDoesNotLatch) {
  for (const int64_t error : {-EIO, -ENOSPC, -EFBIG}) {
    faulty_->on_submit = [error](Op& op) -> std::optional<int64_t> {
      return op.kind == Op::Kind::write ? std::optional(error) : std::nullopt;
    };
    for (const bool durable : {false, true}) {
      Result<void> written = attempt(file_->write(0, noise(10), durable));
      ASSERT_FALSE(written);
      EXPECT_EQ(written.error().sys_errno(), -error);
      EXPECT_FALSE(file_->latched());
    }
  }
}

// A durable write that fails though the write alone works: it was the sync in it.
TEST_P(FaultTest, ADurableWriteWhoseSyncFailsLatches) {
  faulty_->on_submit = [](Op& op) -> std::optional<int64_t> {
    return op.kind == Op::Kind::write && op.dsync ? std::optional<int64_t>(-EIO) : std::nullopt;
  };
  Result<void> written = attempt(file_->write(0, noise(10), true));
  ASSERT_FALSE(written);
  EXPECT_TRUE(file_->latched());
}

TEST_P(FaultTest, WithoutRwfDsyncADurableWriteIsAWriteAndASync) {
  faulty_->on_submit = [](Op& op) -> std::optional<int64_t> {
    return op.kind == Op::Kind::write && op.dsync ? std::optional<int64_t>(-EOPNOTSUPP)
                                                  : std::nullopt;
  };
  ASSERT_TRUE(attempt(file_->write(0, noise(10), true)));
  ASSERT_TRUE(attempt(file_->write(0, noise(10), true)));
  EXPECT_EQ(count(Op::Kind::write), 3u);  // It asks for it once.
  EXPECT_EQ(count(Op::Kind::sync), 2u);
}

// Of two fdatasync calls side by side the kernel tells only one of an error.
TEST_P(FaultTest, SyncsShareOneCallButNeverRunSideBySide) {
  size_t running = 0;
  faulty_->on_submit = [&](Op& op) -> std::optional<int64_t> {
    if (op.kind == Op::Kind::sync) EXPECT_EQ(++running, 1u);
    return std::nullopt;
  };
  const auto one = [](File& file, size_t& run, size_t& done) -> Task<void> {
    co_await file.sync();
    run = 0;
    ++done;
  };
  size_t done = 0;
  const auto all = [&](Reactor& reactor) -> Task<void> {
    Scope scope(reactor.ready());
    for (int i = 0; i < 10; ++i) scope.spawn(one(*file_, running, done));
    co_await scope.join();
  };
  ASSERT_TRUE(attempt(all(*faulty_)));
  EXPECT_EQ(done, 10u);
  // The first began before the others asked; one more serves all of them.
  EXPECT_EQ(count(Op::Kind::sync), 2u);
}

TEST_P(FaultTest, WhatTheFileSystemCannotDoIsRememberedAndDoneOtherwise) {
  const auto unsupported_ops = [&](std::initializer_list<Op::Kind> kinds) {
    std::vector<Op::Kind> list(kinds);
    faulty_->on_submit = [list](Op& op) -> std::optional<int64_t> {
      const bool found = std::find(list.begin(), list.end(), op.kind) != list.end();
      return found ? std::optional<int64_t>(-EOPNOTSUPP) : std::nullopt;
    };
  };
  std::vector<std::byte> model = noise(300000);
  ASSERT_TRUE(attempt(file_->write(0, model)));
  const auto matches = [&] {
    std::vector<std::byte> found(model.size());
    EXPECT_TRUE(attempt(file_->read(0, found)));
    EXPECT_EQ(file_->size(), model.size());
    return found == model;
  };

  // No ZERO_RANGE: a hole, and blocks for it.
  unsupported_ops({Op::Kind::zero_range});
  ASSERT_TRUE(attempt(file_->zero(1000, 100000)));
  std::fill_n(model.begin() + 1000, 100000, std::byte{0});
  EXPECT_TRUE(matches());
  EXPECT_FALSE(file_->properties().can_zero);

  // Nothing at all: zeros are written.
  unsupported_ops({Op::Kind::zero_range, Op::Kind::punch, Op::Kind::allocate});
  faulty_->log.clear();
  ASSERT_TRUE(attempt(file_->zero(200000, 200000)));
  EXPECT_EQ(count(Op::Kind::zero_range), 0u);
  model.resize(400000);
  std::fill(model.begin() + 200000, model.end(), std::byte{0});
  EXPECT_TRUE(matches());
  Result<void> fast = attempt(file_->zero(0, 10, false));
  ASSERT_FALSE(fast);
  EXPECT_EQ(fast.error().code(), Errc::unsupported);

  faulty_->log.clear();
  for (int i = 0; i < 2; ++i) {
    Result<void> punched = attempt(file_->punch(0, 5000));
    ASSERT_FALSE(punched);
    EXPECT_EQ(punched.error().code(), Errc::unsupported);
  }
  EXPECT_EQ(count(Op::Kind::punch), 0u);

  // Allocation without fallocate leaves what is there and writes zeros beyond the end.
  ASSERT_TRUE(attempt(file_->allocate(100, 600000)));
  model.resize(600100);
  EXPECT_TRUE(matches());
}

TEST_P(FaultTest, NoSpaceIsSaidAsSuch) {
  faulty_->on_submit = [](Op& op) -> std::optional<int64_t> {
    return op.kind == Op::Kind::allocate || op.kind == Op::Kind::write
               ? std::optional<int64_t>(-ENOSPC)
               : std::nullopt;
  };
  for (const Result<void>& result :
       {attempt(file_->allocate(0, 100)), attempt(file_->write(0, noise(10)))}) {
    ASSERT_FALSE(result);
    EXPECT_EQ(result.error().code(), Errc::no_space);
    EXPECT_NE(result.error().message().find("f'"), std::string::npos) << result.error().message();
  }
  EXPECT_TRUE(file_->properties().can_allocate);
}

TEST(BufferTest, BuffersAreAlignedAndReused) {
  for (size_t size : {size_t{1}, size_t{4096}, size_t{5000}, size_t{2 * MiB}, size_t{5 * MiB}}) {
    Buffer buffer(size);
    EXPECT_EQ(buffer.size(), size);
    EXPECT_EQ(std::bit_cast<uintptr_t>(buffer.data()) % 4096, 0u);
    fill_zero(buffer.bytes());
    Buffer moved = std::move(buffer);
    EXPECT_EQ(moved.size(), size);
    EXPECT_EQ(buffer.data(), nullptr);
  }
}

}  // namespace
}  // namespace byre
