// SPDX-License-Identifier: Apache-2.0
/// What one process can see of it; --fork itself is tested from outside (tests/interop).
#include "export/background.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <sstream>

#include "io/io_testing.h"

namespace byre {
namespace {

TEST(Background, ADescriptorIsTakenOnceAndNotInherited) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  setenv("BYRE_READY_FD", cat(ends[1]).c_str(), 1);
  EXPECT_EQ(take_ready_descriptor(), ends[1]);
  EXPECT_EQ(fcntl(ends[1], F_GETFD), FD_CLOEXEC);
  EXPECT_EQ(getenv("BYRE_READY_FD"), nullptr);
  EXPECT_EQ(take_ready_descriptor(), -1);
  close(ends[0]);
  close(ends[1]);
}

TEST(Background, WhatIsNoDescriptorOfAParentIsForgotten) {
  for (const char* text : {"", "x", "2", "-1", "3x", "99999999999"}) {
    setenv("BYRE_READY_FD", text, 1);
    EXPECT_EQ(take_ready_descriptor(), -1) << text;
    EXPECT_EQ(getenv("BYRE_READY_FD"), nullptr);
  }
}

TEST(Background, DetachingTellsTheParentAndLeavesTheTerminal) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const pid_t child = fork();
  if (child == 0) {
    const bool done = bool(detach(ends[1]));
    const bool silent = read(STDIN_FILENO, ends, 1) == 0 && write(STDOUT_FILENO, "x", 1) == 1;
    _exit(done && silent ? 0 : 1);
  }
  close(ends[1]);
  char byte = 1;
  EXPECT_EQ(read(ends[0], &byte, 1), 1);
  EXPECT_EQ(byte, 0);
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  close(ends[0]);
}

TEST(Background, ThePidFileHoldsThisProcess) {
  const TemporaryFolder folder;
  const std::string path = folder / "pid";
  std::ofstream(path) << "what an older and longer one has left behind\n";
  const Result<void> written = write_pid_file(path);
  ASSERT_TRUE(written) << written.error().message();
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  EXPECT_EQ(text.str(), cat(getpid(), "\n"));

  const Result<void> refused = write_pid_file(folder / "none/pid");
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().sys_errno(), ENOENT);
}

}  // namespace
}  // namespace byre
