// SPDX-License-Identifier: Apache-2.0
#include "job/live/copy_check.h"

#include <gtest/gtest.h>

#include "base/prng.h"
#include "block/memory.h"
#include "job/live/backup.h"
#include "job/live/job_list.h"
#include "job/live/mirror.h"
#include "sim/sim_reactor.h"

namespace byre {
namespace {

constexpr uint64_t kPiece = 64 * KiB;
/// The last piece is short.
constexpr uint64_t kSize = 3 * MiB + 5 * KiB;
constexpr uint64_t kPieces = (kSize + kPiece - 1) / kPiece;

std::vector<std::byte> noise(uint64_t length, uint64_t seed) {
  std::vector<std::byte> data(length);
  Prng prng(seed);
  for (std::byte& each : data) each = static_cast<std::byte>(prng.next() | 1);
  return data;
}

// --- What a piece has to read as -----------------------------------------------------------------

TEST(CopySums, APieceMayComeInParts) {
  const std::vector<std::byte> data = noise(kPiece, 1);
  std::vector<std::byte> all(2 * kPiece);
  copy(MutableBytes(all).first(1000), Bytes(data).first(1000));
  copy(MutableBytes(all).subspan(9000, 100 + kPiece - 9000),
       Bytes(data).first(100 + kPiece - 9000));
  CopySums sums(kSize, kPiece);
  CopySums::Noter noter(&sums);
  noter.bytes(0, Bytes(all).first(1000));
  noter.zeros(1000, 8000);
  noter.bytes(9000, Bytes(all).subspan(9000, 100 + kPiece - 9000));
  noter.zeros(kPiece + 100, kPiece - 100);
  EXPECT_TRUE(sums.is_right(0, Bytes(all).first(kPiece)));
  EXPECT_TRUE(sums.is_right(1, Bytes(all).subspan(kPiece)));
  all[kPiece + 99] ^= std::byte{1};
  EXPECT_FALSE(sums.is_right(1, Bytes(all).subspan(kPiece)));
}

TEST(CopySums, OnlyWhatWasFlushedAfterItWasWrittenIsTaken) {
  CopySums sums(kSize, kPiece);
  sums.note(0, noise(2 * kPiece, 1));
  sums.note_zeros(2 * kPiece, kSize - 2 * kPiece);
  EXPECT_EQ(sums.unchecked_bytes(), 0u);
  sums.wrote({.first = 0, .end = 1});
  EXPECT_FALSE(sums.take(0, MiB));
  sums.flushing();
  sums.wrote(sums.all());
  const auto first = sums.take(0, MiB);
  ASSERT_TRUE(first);
  EXPECT_EQ(first->end, 1u);
  EXPECT_FALSE(sums.take(0, MiB));
  sums.flushing();
  const auto zeros = sums.take(2, kPiece);
  ASSERT_TRUE(zeros);
  EXPECT_TRUE(zeros->zeros);
  EXPECT_EQ(zeros->first, 2u);
  EXPECT_EQ(zeros->end, kPieces);
}

TEST(CopySums, WhatIsWrittenWhileItIsComparedIsComparedAgain) {
  CopySums sums(kSize, kPiece);
  sums.note(0, noise(4 * kPiece, 1));
  sums.wrote({.first = 0, .end = 4});
  sums.flushing();
  const auto taken = sums.take(0, MiB);
  ASSERT_TRUE(taken && taken->end == 4);
  sums.note(kPiece, noise(kPiece, 2));
  sums.wrote({.first = 1, .end = 2});
  CopySums::Pieces left = sums.still(*taken, 0);
  EXPECT_EQ(left.end, 1u);
  sums.checked(left);
  left = sums.still(*taken, left.end);
  EXPECT_EQ(left.first, 2u);
  EXPECT_EQ(left.end, 4u);
  sums.put_back(*taken);
  EXPECT_EQ(sums.unchecked_bytes(), 3 * kPiece);
  EXPECT_EQ(sums.checked_bytes(), kPiece);
}

// --- Jobs ----------------------------------------------------------------------------------------

class CopyCheckTest : public testing::Test {
 protected:
  CopyCheckTest() {
    // Data with holes of zeros; the end is data.
    std::vector<std::byte> data = noise(kSize, 3);
    for (uint64_t at = 700 * KiB; at < 1500 * KiB; ++at) data[at] = {};
    source().poke(0, data);
    jobs_.set_listener([this](const Job&, const JobEvent& event) {
      if (event.kind == JobEvent::Kind::ready && when_ready_) when_ready_();
    });
  }
  ~CopyCheckTest() override { EXPECT_TRUE(reactor_.finish(jobs_.close())); }

  MemoryDevice& source() { return static_cast<MemoryDevice&>(*source_); }
  /// The next target, which stays open.
  Child target() {
    targets_.push_back(std::make_unique<MemoryDevice>(reactor_, kSize));
    return targets_.back().another();
  }
  void flip(uint64_t at) {
    auto& memory = static_cast<MemoryDevice&>(*targets_.back());
    std::byte byte[1];
    memory.peek(at, byte);
    byte[0] ^= std::byte{0x20};
    memory.poke(at, byte);
  }
  Job* start(std::unique_ptr<JobWork> work, uint64_t speed = 0) {
    const Result<Job*> job = jobs_.run(
        std::move(work), {.id = cat("j", ++number_), .auto_dismiss = false, .speed = speed});
    EXPECT_TRUE(job);
    return job ? *job : nullptr;
  }
  Job* mirror(MirrorMode mode = MirrorMode::background, bool verify = true) {
    MirrorOptions options{.verify = verify, .requests_max = 2};
    options.filter.mode = mode;
    options.filter.request_size = 256 * KiB;
    auto work = Mirror::make(source_.another(), target(), std::move(options));
    EXPECT_TRUE(work);
    return start(*std::move(work));
  }
  Result<void> wait(const Job& job, JobStatus status) {
    return reactor_.finish(jobs_.wait_for(job.id(), status));
  }
  Result<void> until_checked(const Job& job, uint64_t bytes) {
    return reactor_.finish(look_until_checked(job, bytes));
  }
  Task<void> look_until_checked(const Job& job, uint64_t bytes) {
    while (job.work().verified() < bytes) co_await reactor_.sleep(kMillisecond);
  }
  static std::string says(const Job& job) {
    return job.error() ? job.error().message() : "no error";
  }
  static void expect_found(const Job& job, uint64_t at, uint64_t length) {
    const std::string why = says(job);
    ASSERT_TRUE(job.error());
    EXPECT_EQ(job.error().code(), Errc::io) << why;
    EXPECT_NE(why.find("verify: the target"), std::string::npos) << why;
    EXPECT_NE(why.find(cat(" at ", hex(at), ", ", length, " bytes")), std::string::npos) << why;
    EXPECT_NE(why.find("do not use this copy"), std::string::npos) << why;
  }

  SimReactor reactor_{5};
  JobList jobs_{reactor_};
  Child source_ = std::make_unique<MemoryDevice>(reactor_, kSize);
  std::vector<Child> targets_;
  std::function<void()> when_ready_;
  int number_ = 0;
};

TEST_F(CopyCheckTest, ASoundMirrorIsVerifiedWhileItIsReady) {
  Job* const job = mirror();
  ASSERT_TRUE(wait(*job, JobStatus::ready));
  ASSERT_TRUE(until_checked(*job, kSize));
  EXPECT_TRUE(job->complete());
  ASSERT_TRUE(wait(*job, JobStatus::concluded));
  EXPECT_FALSE(job->error()) << says(*job);
  EXPECT_EQ(job->work().verified(), kSize);
}

TEST_F(CopyCheckTest, AByteThatChangesBeforeTheSwitchIsFound) {
  const uint64_t last = kPieces - 1;
  for (const uint64_t at : {uint64_t{0}, 3 * kPiece + 9, 800 * KiB, kSize - 1}) {
    when_ready_ = [this, at] { flip(at); };  // All is copied, and nothing is compared yet.
    Job* const job = mirror();
    ASSERT_TRUE(wait(*job, JobStatus::concluded));
    ASSERT_TRUE(job->error()) << at;
    const uint64_t piece = at / kPiece;
    if (at != 800 * KiB) {  // What was zeros is looked at in larger parts.
      expect_found(*job, piece * kPiece, piece == last ? kSize - last * kPiece : kPiece);
    }
    // Guests stay where they are.
    EXPECT_EQ(targets_.back().node().parents().size(), 1u);
  }
}

TEST_F(CopyCheckTest, WithoutItNobodyLooks) {
  Job* const job = mirror(MirrorMode::background, false);
  ASSERT_TRUE(wait(*job, JobStatus::ready));
  flip(7);
  EXPECT_TRUE(job->complete());
  ASSERT_TRUE(wait(*job, JobStatus::concluded));
  EXPECT_FALSE(job->error());
  EXPECT_FALSE(job->work().verified());
}

/// What guests write when all was compared is compared again, in either mode.
TEST_F(CopyCheckTest, WhatGuestsWriteIsComparedAgain) {
  for (const MirrorMode mode : {MirrorMode::background, MirrorMode::write_blocking}) {
    for (const bool spoilt : {false, true}) {
      Child guest = source_.another();  // The filter enters here.
      Job* const job = mirror(mode);
      ASSERT_TRUE(wait(*job, JobStatus::ready));
      ASSERT_TRUE(until_checked(*job, kSize));
      ASSERT_TRUE(reactor_.finish(guest->write(kPiece + 512, noise(1024, 8), {})));
      ASSERT_TRUE(reactor_.finish(guest->write(6 * kPiece, noise(2 * kPiece, 9), {})));
      ASSERT_TRUE(reactor_.finish(guest->zero(9 * kPiece + 512, kPiece, {})));
      ASSERT_TRUE(reactor_.finish(guest->discard(20 * kPiece, kPiece)));
      ASSERT_TRUE(reactor_.finish(reactor_.sleep(kSecond)));
      if (spoilt) flip(mode == MirrorMode::background ? kPiece + 700 : 6 * kPiece + 3);
      (void)job->complete();
      ASSERT_TRUE(wait(*job, JobStatus::concluded));
      EXPECT_EQ(static_cast<bool>(job->error()), spoilt) << says(*job);
      if (spoilt) expect_found(*job, (mode == MirrorMode::background ? 1 : 6) * kPiece, kPiece);
      ASSERT_TRUE(reactor_.finish(guest.close()));
    }
  }
}

TEST_F(CopyCheckTest, GuestsThatHelpCompareMoreThanTheyWrite) {
  MirrorFilter filter(source_.another(), target(),
                      {.mode = MirrorMode::write_blocking, .granularity = kPiece, .sums = true});
  while (true) {
    const auto taken = reactor_.finish(filter.take(0));
    ASSERT_TRUE(taken);
    if (!*taken) break;
    ASSERT_FALSE(reactor_.finish(filter.copy(**taken))->error);
  }
  CopySums& sums = *filter.sums();
  EXPECT_EQ(sums.unchecked_bytes(), kPieces * kPiece);
  CopyCheck check(sums, filter.target(), "source", {.locks = &filter.locks()});
  sums.flushing();
  filter.let_guests_help(&check);
  uint64_t before = sums.unchecked_bytes();
  for (uint64_t at = 0; at < 10; ++at) {
    ASSERT_TRUE(reactor_.finish(filter.write(2 * at * kPiece + 4096, noise(4096, at), {})));
    EXPECT_LE(sums.unchecked_bytes() + kPiece, before);
    before = sums.unchecked_bytes();
  }
  EXPECT_TRUE(reactor_.finish(check.run_alone()));
  EXPECT_EQ(sums.checked_bytes(), kSize);
  filter.let_guests_help(nullptr);
  ASSERT_TRUE(reactor_.finish(filter.close()));
}

TEST_F(CopyCheckTest, ABackupIsComparedBeforeItEnds) {
  for (const bool spoilt : {false, true}) {
    Child guest = source_.another();
    auto work = Backup::make(source_.another(), target(), {.verify = true, .requests_max = 1});
    ASSERT_TRUE(work);
    const Job* const job = start(*std::move(work), 1 * MiB);  // A piece a second.
    ASSERT_TRUE(wait(*job, JobStatus::running));
    ASSERT_TRUE(reactor_.finish(reactor_.sleep(500 * kMillisecond)));
    // The last cluster is copied for the guest, and then spoilt.
    ASSERT_TRUE(reactor_.finish(guest->write(kSize - 512, noise(512, 4), {})));
    if (spoilt) flip(kSize - 1);
    ASSERT_TRUE(wait(*job, JobStatus::concluded));
    EXPECT_EQ(static_cast<bool>(job->error()), spoilt) << says(*job);
    const uint64_t last = (kPieces - 1) * kPiece;
    if (spoilt) expect_found(*job, last, kSize - last);
    if (!spoilt) EXPECT_EQ(job->work().verified(), kSize);
    EXPECT_EQ(job->progress().total(), 2 * kSize);
    ASSERT_TRUE(reactor_.finish(guest.close()));
  }
}

TEST_F(CopyCheckTest, OnlyAWholeCopyCanBeVerified) {
  const auto mirror =
      Mirror::make(source_.another(), target(), {.copies_nothing = true, .verify = true});
  ASSERT_FALSE(mirror);
  EXPECT_NE(mirror.error().message().find("sync 'none'"), std::string::npos);
  const auto backup =
      Backup::make(source_.another(), target(), {.only_on_change = true, .verify = true});
  ASSERT_FALSE(backup);
  EXPECT_NE(backup.error().message().find("sync 'none'"), std::string::npos);
}

}  // namespace
}  // namespace byre
