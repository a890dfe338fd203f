// SPDX-License-Identifier: Apache-2.0
#include "io/temporary_file.h"

#include "io/copy_range.h"
#include "io/io_testing.h"

namespace byre {
namespace {

class TemporaryFileTest : public IoTest {
 protected:
  std::vector<std::byte> read(File& file, uint64_t offset, size_t size) {
    std::vector<std::byte> data(size, std::byte{0xee});
    run(file.read(offset, data));
    return data;
  }
};
ON_EVERY_REACTOR(TemporaryFileTest);

TEST_P(TemporaryFileTest, EachOpenSeesTheSameBytesAndTheFolderNothing) {
  Result<TemporaryFile> made = TemporaryFile::make(folder_.path());
  ASSERT_TRUE(made) << made.error().message();
  EXPECT_TRUE(std::filesystem::is_empty(folder_.path()));
  const std::vector<std::byte> data = noise(5000);
  {
    Result<std::unique_ptr<File>> file = made->open(reactor(), true);
    ASSERT_TRUE(file) << file.error().message();
    run((*file)->write(10, data));
  }
  Result<std::unique_ptr<File>> file = made->open(reactor(), false);
  ASSERT_TRUE(file) << file.error().message();
  EXPECT_EQ((*file)->size(), 5010u);
  EXPECT_EQ(read(**file, 10, 5000), data);
  EXPECT_EQ(error_of((*file)->write(0, data)).code(), Errc::read_only);
}

TEST_P(TemporaryFileTest, AFolderThatIsNotThereIsAnError) {
  const Result<TemporaryFile> made = TemporaryFile::make(folder_ / "nothing");
  ASSERT_FALSE(made);
  EXPECT_EQ(made.error().code(), Errc::not_found);
  EXPECT_NE(made.error().message().find("TMPDIR"), std::string::npos);
}

TEST_P(TemporaryFileTest, ARangeIsCopiedWhereTheKernelCan) {
  constexpr FileOptions kNew{.writable = true, .create = true};
  const std::unique_ptr<File> from = open("from", kNew);
  const std::unique_ptr<File> to = open("to", kNew);
  const std::vector<std::byte> data = noise(3 * MiB);
  run(from->write(0, data));
  if (!run(copy_range({*from, 4096}, {*to, 8192}, 2 * MiB))) GTEST_SKIP() << "not on this system";
  EXPECT_EQ(read(*to, 8192, 2 * MiB),
            std::vector(data.begin() + 4096, data.begin() + 4096 + 2 * MiB));
  EXPECT_EQ(read(*to, 0, 8192), std::vector<std::byte>(8192));
  // Behind the end there is nothing to copy: that is for a read, which gives zeros.
  EXPECT_FALSE(run(copy_range({*from, 3 * MiB - 512}, {*to, 0}, 4096)));
}

}  // namespace
}  // namespace byre
