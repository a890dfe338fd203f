// SPDX-License-Identifier: Apache-2.0
#include "io/file_lock.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "io/descriptor.h"
#include "io/file.h"
#include "io/io_testing.h"

namespace byre {
namespace {

/// A program that runs beside the test, with a pipe to its input and one from its output.
class Program {
 public:
  explicit Program(std::vector<std::string> arguments) {
    int in[2];
    int out[2];
    BYRE_ASSERT(pipe2(in, O_CLOEXEC) == 0 && pipe2(out, O_CLOEXEC) == 0);
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    pid_ = fork();
    if (pid_ == 0) {
      dup2(in[0], 0);
      dup2(out[1], 1);
      dup2(out[1], 2);
      execvp(argv[0], argv.data());
      _exit(127);
    }
    ::close(in[0]);
    ::close(out[1]);
    in_ = Descriptor(in[1]);
    out_ = Descriptor(out[0]);
  }
  ~Program() {
    if (pid_ > 0) finish();
  }
  pid_t pid() const { return pid_; }
  void say(std::string_view text) {
    BYRE_ASSERT(write(in_.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size()));
  }
  /// Reads what it prints until `text` comes; false when it ends before.
  bool hear(std::string_view text) {
    while (heard_.find(text) == std::string::npos) {
      char buffer[1000];
      const ssize_t got = ::read(out_.get(), buffer, sizeof buffer);
      if (got <= 0) return false;
      heard_.append(buffer, static_cast<size_t>(got));
    }
    return true;
  }
  const std::string& heard() const { return heard_; }
  /// Ends its input, waits for it, and gives its exit code.
  int finish() {
    in_.reset();
    hear("\x01 never");
    int status = 0;
    waitpid(std::exchange(pid_, -1), &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  }

 private:
  pid_t pid_ = -1;
  Descriptor in_;
  Descriptor out_;
  std::string heard_;
};

int run_program(std::vector<std::string> arguments, std::string* output = nullptr) {
  Program program(std::move(arguments));
  const int code = program.finish();
  if (output) *output = program.heard();
  return code;
}

class FileLockTest : public testing::Test {
 protected:
  void SetUp() override {
    Result<std::unique_ptr<Reactor>> made = make_reactor();
    ASSERT_TRUE(made);
    reactor_ = *std::move(made);
  }
  Result<std::unique_ptr<File>> open(const std::string& path, bool writable, bool share = false) {
    return File::open(*reactor_, path, {.writable = writable, .share_lock = share});
  }

  TemporaryFolder folder_;
  std::unique_ptr<Reactor> reactor_;
};

// The kernel's io_uring workers may hold a description a moment longer than the process that closed
// it; here a duplicate does.
TEST_F(FileLockTest, ClosingUnlocksWhoeverElseHoldsTheDescription) {
  const std::string path = folder_ / "f";
  auto writer = File::open(*reactor_, path, {.writable = true, .create = true});
  ASSERT_TRUE(writer) << writer.error().message();
  const Descriptor held(dup((*writer)->properties().fd));
  EXPECT_FALSE(open(path, true));
  writer->reset();
  EXPECT_TRUE(open(path, true));
}

TEST_F(FileLockTest, OneWriterOrManyReaders) {
  const std::string path = folder_ / "f";
  {
    auto made = File::open(*reactor_, path, {.writable = true, .create = true});
  }
  {
    auto writer = open(path, true);
    ASSERT_TRUE(writer) << writer.error().message();
    for (const bool writable : {false, true}) {
      auto second = open(path, writable);
      ASSERT_FALSE(second);
      EXPECT_EQ(second.error().code(), Errc::busy);
      EXPECT_EQ(second.error().message(),
                cat("'", path, "' is locked for writing by this process; close it first"));
    }
    EXPECT_TRUE(open(path, false, true));
    EXPECT_FALSE(open(path, true, true));  // The writer lets nobody write beside it.
    EXPECT_TRUE(File::open(*reactor_, path, {.writable = true, .lock = false}));
  }
  {
    auto first = open(path, false);
    auto second = open(path, false);
    ASSERT_TRUE(first);
    ASSERT_TRUE(second);
    auto writer = open(path, true);
    ASSERT_FALSE(writer);
    EXPECT_EQ(writer.error().message(),
              cat("'", path,
                  "' is in use by this process, which lets nobody write to it; "
                  "close it first"));
  }
  {
    auto reader = open(path, false, true);
    ASSERT_TRUE(reader);
    EXPECT_TRUE(open(path, true));
  }
  {
    auto first = open(path, true, true);
    auto second = open(path, true, true);
    EXPECT_TRUE(first && second);
    EXPECT_FALSE(open(path, true));
    EXPECT_FALSE(open(path, false));
  }
  EXPECT_TRUE(open(path, true));  // Every lock went with its file.
}

TEST_F(FileLockTest, AFileThatIsLockedIsNotTruncated) {
  const std::string path = folder_ / "f";
  auto writer = File::open(*reactor_, path, {.writable = true, .create = true});
  ASSERT_TRUE(writer);
  ASSERT_TRUE(reactor_->run((*writer)->write(0, noise(100))));
  auto again = File::open(*reactor_, path, {.writable = true, .create = true, .replace = true});
  ASSERT_FALSE(again);
  EXPECT_EQ(again.error().code(), Errc::busy);
  EXPECT_EQ(std::filesystem::file_size(path), 100u);
}

TEST_F(FileLockTest, WhereThereAreNoLocksOpeningIsRefusedUnlessToldToDoWithout) {
  const std::string path = folder_ / "f";
  EXPECT_EXIT(
      {
        forbid_system_call(SYS_fcntl, ENOLCK, F_OFD_SETLK);
        auto file = File::open(*reactor_, path, {.writable = true, .create = true});
        const bool refused = !file && file.error().code() == Errc::unsupported;
        const bool gone = !std::filesystem::exists(path);
        file = File::open(*reactor_, path, {.writable = true, .create = true, .lock = false});
        _exit(refused && gone && file ? 0 : 1);
      },
      testing::ExitedWithCode(0), "");
}

/// With the real programs: each refuses what the other uses, in both directions.
class QemuLockTest : public FileLockTest {
 protected:
  void SetUp() override {
    FileLockTest::SetUp();
    image_ = folder_ / "disk.qcow2";
    if (run_program({"qemu-img", "create", "-q", "-f", "qcow2", image_, "1M"}) != 0) {
      ASSERT_EQ(getenv("CI"), nullptr) << "no qemu-img";
      GTEST_SKIP() << "no qemu-img";
    }
  }
  /// qemu-io with the image open.
  std::unique_ptr<Program> qemu_io(std::vector<std::string> options) {
    options.insert(options.begin(), "qemu-io");
    options.push_back(image_);
    auto program = std::make_unique<Program>(options);
    program->say("read 0 512\n");
    EXPECT_TRUE(program->hear("read 512/512")) << program->heard();
    return program;
  }
  std::string image_;
};

TEST_F(QemuLockTest, ByreRefusesWhatQemuWrites) {
  auto qemu = qemu_io({});
  const std::string holder = cat("qemu-io (pid ", qemu->pid(), ")");
  auto writer = open(image_, true);
  ASSERT_FALSE(writer);
  EXPECT_EQ(writer.error().code(), Errc::busy);
  EXPECT_EQ(writer.error().message(),
            cat("'", image_, "' is locked for writing by ", holder, "; close it first"));
  auto reader = open(image_, false);
  ASSERT_FALSE(reader);
  EXPECT_EQ(reader.error().message(),
            cat("'", image_, "' is locked for writing by ", holder, "; close it first"));
  EXPECT_TRUE(open(image_, false, true));
  EXPECT_EQ(qemu->finish(), 0);
  EXPECT_TRUE(open(image_, true));
}

TEST_F(QemuLockTest, ByreReadsBesideAQemuReaderButDoesNotWrite) {
  auto qemu = qemu_io({"-r"});
  EXPECT_TRUE(open(image_, false));
  EXPECT_TRUE(open(image_, false, true));
  auto writer = open(image_, true);
  ASSERT_FALSE(writer);
  EXPECT_EQ(writer.error().message(), cat("'", image_, "' is in use by qemu-io (pid ", qemu->pid(),
                                          "), which lets nobody write to it; close it first"));
}

TEST_F(QemuLockTest, AByreWriterIsSeenByARawQemuWriter) {
  auto qemu = qemu_io({"-f", "raw"});  // Shares everything, but writes.
  EXPECT_FALSE(open(image_, true));
  EXPECT_FALSE(open(image_, false));
  EXPECT_TRUE(open(image_, true, true));
}

TEST_F(QemuLockTest, QemuRefusesWhatByreWrites) {
  auto writer = open(image_, true);
  ASSERT_TRUE(writer);
  std::string said;
  EXPECT_NE(run_program({"qemu-io", "-c", "write 0 512", image_}, &said), 0);
  EXPECT_NE(said.find("lock"), std::string::npos) << said;
  EXPECT_NE(run_program({"qemu-io", "-r", "-c", "read 0 512", image_}), 0);
  EXPECT_NE(run_program({"qemu-io", "-f", "raw", "-c", "write 0 512", image_}), 0);
  EXPECT_NE(run_program({"qemu-img", "info", image_}, &said), 0);
  EXPECT_NE(said.find("lock"), std::string::npos) << said;
  EXPECT_EQ(run_program({"qemu-img", "info", "-U", image_}), 0);
  EXPECT_EQ(run_program({"qemu-io", "-U", "-r", "-c", "read 0 512", image_}), 0);
}

TEST_F(QemuLockTest, QemuReadsBesideAByreReaderButDoesNotWrite) {
  auto reader = open(image_, false);
  ASSERT_TRUE(reader);
  EXPECT_EQ(run_program({"qemu-io", "-r", "-c", "read 0 512", image_}), 0);
  EXPECT_EQ(run_program({"qemu-img", "check", image_}), 0);
  std::string said;
  EXPECT_NE(run_program({"qemu-io", "-c", "write 0 512", image_}, &said), 0);
  EXPECT_NE(said.find("lock"), std::string::npos) << said;
}

TEST_F(QemuLockTest, AByreReaderWithUDoesNotDisturbQemu) {
  auto reader = open(image_, false, true);
  ASSERT_TRUE(reader);
  EXPECT_EQ(run_program({"qemu-io", "-c", "write 0 512", image_}), 0);
}

}  // namespace
}  // namespace byre
