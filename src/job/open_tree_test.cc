// SPDX-License-Identifier: Apache-2.0
#include "job/open_tree.h"

#include <gtest/gtest.h>

#include "job/create.h"
#include "sim/sim_gate.h"
#include "sim/sim_reactor.h"

namespace byre {
namespace {

class OpenTreeTest : public testing::Test {
 protected:
  void make(const std::string& name, const std::string& below = "",
            const std::string& format = "qcow2") {
    CreateDiskOptions options{.format = DiskFormat::qcow2, .replace = true, .sync = false};
    options.image.size = MiB;
    options.image.backing_file = below;
    if (!below.empty()) options.image.backing_format = format;
    const Result<void> made =
        reactor_.run(create_disk(reactor_, opener_, name, std::move(options)));
    ASSERT_TRUE(made) << made.error().message();
  }
  Result<Disk> open_parsed(Result<DeviceTree> tree, ImageOptions image) {
    if (!tree) return std::move(tree).error();
    return reactor_.run(
        open_tree(opener_, *std::move(tree), {.image = std::move(image), .reactor = &reactor_}));
  }
  Result<Disk> open(const std::string& json, ImageOptions image = {}) {
    return open_parsed(parse_device_name(cat("json:", json)), std::move(image));
  }
  std::string failure(const std::string& json, ImageOptions image = {}) {
    Result<Disk> disk = open(json, std::move(image));
    if (!disk) return disk.error().message();
    close(*disk);
    return "";
  }
  void close(Disk& disk) { EXPECT_TRUE(reactor_.run(disk.device->close())); }
  void fill(Disk& disk, uint64_t at, char byte, size_t size = 512) {
    const std::string data(size, byte);
    const Result<void> written =
        reactor_.run(disk.device->write(at, bytes_of(std::string_view(data)), {}));
    ASSERT_TRUE(written) << written.error().message();
  }
  std::string read(Disk& disk, uint64_t at, size_t size = 1) {
    std::vector<std::byte> data(size);
    const Result<void> done = reactor_.run(disk.device->read(at, data, IoTag::read_guest));
    return done ? std::string(text_of(data)) : done.error().message();
  }

  static constexpr const char* kImage = R"({"driver":"qcow2","file":{"filename":"image"}})";

  SimReactor reactor_{1};
  SimDisks disks_;
  SimGate opener_{reactor_, disks_};
};

TEST_F(OpenTreeTest, AnImageIsWrittenAndReadThroughItsTree) {
  make("image");
  Result<Disk> disk = open(kImage, {.writable = true});
  ASSERT_TRUE(disk) << disk.error().message();
  EXPECT_EQ(disk->format, DiskFormat::qcow2);
  EXPECT_EQ(disk->image, disk->device.get());
  fill(*disk, 0, 'a');
  close(*disk);
  disk = open(R"({"file":{"filename":"image"}})");
  ASSERT_TRUE(disk) << disk.error().message();
  EXPECT_TRUE(disk->guessed);
  EXPECT_EQ(read(*disk, 0), "a");
  close(*disk);
}

TEST_F(OpenTreeTest, ABackingDiskMayBeGiven) {
  make("base");
  make("other");
  make("image", "base");
  Result<Disk> other =
      open(R"({"driver":"qcow2","file":{"filename":"other"}})", {.writable = true});
  ASSERT_TRUE(other);
  fill(*other, 0, 'o');
  close(*other);

  disks_.erase("base");  // Not opened: the header's name does not count.
  Result<Disk> disk = open(R"({"driver":"qcow2","file":{"filename":"image"},
      "backing":{"driver":"qcow2","file":{"filename":"other"}}})",
                           {.writable = true});
  ASSERT_TRUE(disk) << disk.error().message();
  EXPECT_EQ(read(*disk, 0), "o");
  fill(*disk, 512, 'x');
  EXPECT_EQ(read(*disk, 0), "o");
  EXPECT_EQ(read(*disk, 512), "x");
  close(*disk);

  disk = open(R"({"driver":"qcow2","file":{"filename":"image"},"backing":null})");
  ASSERT_TRUE(disk) << disk.error().message();
  EXPECT_TRUE(disk->without_backing);
  close(*disk);
  EXPECT_NE(failure(R"({"driver":"qcow2","file":{"filename":"image"}})"), "");
}

TEST_F(OpenTreeTest, APartOfADiskOverAnImage) {
  make("image");
  Result<Disk> disk = open(cat(R"({"driver":"raw","offset":512,"size":1024,"file":)", kImage, "}"),
                           {.writable = true});
  ASSERT_TRUE(disk) << disk.error().message();
  EXPECT_EQ(disk->format, DiskFormat::raw);
  EXPECT_EQ(disk->image, nullptr);
  EXPECT_EQ(disk->size(), 1024u);
  fill(*disk, 512, 'p');
  close(*disk);
  disk = open(kImage);
  EXPECT_EQ(read(*disk, 1024), "p");
  close(*disk);
}

TEST_F(OpenTreeTest, FiltersLieOverAnImage) {
  make("image");
  Result<Disk> disk = open(cat(R"({"driver":"compress","detect-zeroes":"on","file":)", kImage, "}"),
                           {.writable = true});
  ASSERT_TRUE(disk) << disk.error().message();
  ASSERT_NE(disk->image, nullptr);
  fill(*disk, 0, 'c', 64 * KiB);
  EXPECT_EQ(disk->image->stats().clusters_compressed, 1u);
  const uint64_t before = disk->image->stats().clusters_allocated;
  fill(*disk, 64 * KiB, '\0', 64 * KiB);
  EXPECT_EQ(disk->image->stats().clusters_allocated, before) << "zeros take none";
  close(*disk);
  EXPECT_EQ(failure(R"({"driver":"compress","file":{"driver":"null-co"}})"),
            "Compression is not supported for underlying format: null-co");
}

TEST_F(OpenTreeTest, AFaultFilterFailsRequests) {
  Result<Disk> disk = open(R"({"driver":"blkdebug","image":{"driver":"null-co"},
      "inject-error":[{"event":"read_aio"}]})");
  ASSERT_TRUE(disk) << disk.error().message();
  std::vector<std::byte> data(512);
  EXPECT_FALSE(reactor_.run(disk->device->read(0, data, IoTag::read_guest)));
  close(*disk);
}

TEST_F(OpenTreeTest, ANullDiskHasASizeAndALatency) {
  Result<Disk> disk =
      open(R"({"driver":"null-co","size":"1k","latency-ns":1000000})", {.writable = true});
  ASSERT_TRUE(disk) << disk.error().message();
  EXPECT_EQ(disk->size(), 1024u);
  const Instant before = reactor_.now();
  fill(*disk, 0, 'x');
  EXPECT_GE(reactor_.now(), before + 1000000);
  const std::vector<std::byte> data(512);
  EXPECT_FALSE(reactor_.run(disk->device->write(1024, data, {})));
  close(*disk);
}

TEST_F(OpenTreeTest, ReadOnlyIsKept) {
  make("image");
  const std::string node = R"({"driver":"qcow2","read-only":true,"file":{"filename":"image"}})";
  EXPECT_EQ(failure(node, {.writable = true}), "Block node is read-only");
  EXPECT_EQ(failure(node), "");
  EXPECT_EQ(failure(R"({"driver":"null-co","force-share":true})", {.writable = true}),
            "force-share=on can only be used with read-only images");
  EXPECT_NE(
      failure(R"({"driver":"null-co","detect-zeroes":"unmap"})", {.discard = DiscardPolicy::ignore})
          .find("setting detect-zeroes to unmap is not allowed"),
      std::string::npos);
}

TEST_F(OpenTreeTest, DiscardsMayBeIgnored) {
  make("image");
  Result<Disk> disk = open(
      R"({"driver":"raw","discard":"ignore","file":{"driver":"qcow2","file":{"filename":"image"}}})",
      {.writable = true});
  ASSERT_TRUE(disk) << disk.error().message();
  fill(*disk, 0, 'd', 64 * KiB);
  ASSERT_TRUE(reactor_.run(disk->device->discard(0, 64 * KiB, {})));
  EXPECT_EQ(read(*disk, 0), "d");
  close(*disk);
}

TEST_F(OpenTreeTest, AFailureLeavesNothingOpen) {
  make("image");
  make("base");
  const std::string file = R"("file":{"filename":"image"})";
  const std::string base = R"({"driver":"qcow2","file":{"filename":"base"}})";
  for (const std::string& text : {
           cat(R"({"driver":"raw","offset":"1G","file":{"driver":"qcow2",)", file, "}}"),
           cat(R"({"driver":"raw","size":3,"file":{"driver":"qcow2",)", file, "}}"),
           cat(R"({"driver":"qcow2","backing":)", base, R"(,"file":{"filename":"missing"}})"),
           cat(R"({"driver":"qcow2","backing":)", base, R"(,"file":{"driver":"null-co"}})"),
           cat(R"({"driver":"qcow2","data-file":{"filename":"base"},)", file, "}"),
           cat(R"({"driver":"qcow2","l2-cache-size":1,)", file, "}"),
           cat(R"({"driver":"qcow2","backing":{"driver":"qcow2","file":{"filename":"x"}},)", file,
               "}"),
           cat(R"({"offset":1,"backing":)", base, R"(,"file":{"filename":"image"}})"),
       }) {
    EXPECT_NE(failure(text, {.writable = true}), "") << text;
    EXPECT_EQ(failure(kImage, {.writable = true}), "") << text;
    EXPECT_EQ(failure(base, {.writable = true}), "") << text;
  }
}

TEST_F(OpenTreeTest, ANodeMayHaveTwoParents) {
  make("base");
  make("image");
  const std::string texts[] = {"driver=qcow2,node-name=base,file.filename=base",
                               "driver=raw,node-name=part,file=base",
                               "driver=qcow2,node-name=mid,file.filename=image,backing=base",
                               "driver=qcow2,node-name=top,file=part,backing=mid"};
  // `top` would be an image inside the disk of `base`, which holds none.
  Result<Disk> disk = open_parsed(parse_device_list(texts, "top"), {});
  ASSERT_FALSE(disk);
  EXPECT_NE(disk.error().message().find("not in qcow2 format"), std::string::npos)
      << disk.error().message();
  disk = open_parsed(parse_device_list(std::span(texts).first(3), "mid"), {});
  EXPECT_FALSE(disk) << "`part` is used by nobody";

  Result<DeviceTree> tree = parse_device_list(texts, "top");
  ASSERT_TRUE(tree);
  EXPECT_EQ((*tree)->child("file")->child("file")->parents, 2u);
  EXPECT_FALSE(open_parsed(std::move(tree), {.writable = true}));
  EXPECT_EQ(failure(kImage, {.writable = true}), "");
}

TEST_F(OpenTreeTest, OneMayWriteANodeThatOthersReadIfTheyAllowIt) {
  make("base");
  make("image");
  const std::string kept[] = {
      "driver=qcow2,node-name=disk,file.filename=base",
      "driver=qcow2,node-name=before,file.filename=image,backing=disk",
      "driver=copy-before-write,node-name=top,file=disk,target=before",
  };
  Result<Disk> disk = open_parsed(parse_device_list(kept, "top"), {.writable = true});
  ASSERT_TRUE(disk) << disk.error().message();
  const std::string old = read(*disk, 0, 4096);
  const std::vector<std::byte> data(4096, std::byte{0x5a});
  ASSERT_TRUE(reactor_.run(disk->device->write(0, data)));
  close(*disk);
  disk = open_parsed(parse_device_list(std::span(kept).first(2), "before"), {});
  ASSERT_TRUE(disk) << disk.error().message();
  EXPECT_EQ(read(*disk, 0, 4096), old);
  close(*disk);
}

TEST_F(OpenTreeTest, WhatOneWritesAnotherMayNotShare) {
  make("base");
  const auto why = [&](std::span<const std::string> texts) {
    Result<Disk> disk = open_parsed(parse_device_list(texts, "top"), {.writable = true});
    if (disk) close(*disk);
    EXPECT_EQ(failure(R"({"driver":"raw","file":{"filename":"base"}})", {.writable = true}), "");
    return disk ? "" : disk.error().message();
  };
  const std::string twice[] = {"driver=file,node-name=f,filename=base",
                               "driver=blkverify,node-name=top,test=f,raw=f"};
  EXPECT_EQ(why(twice),
            "Permission conflict on node 'f': permissions 'resize' are both required by node "
            "'top' (uses node 'f' as 'filtered' child) and unshared by node 'top' (uses node 'f' "
            "as 'other' child).");
  const std::string unshared[] = {
      "driver=file,node-name=f,filename=base",
      "driver=blkdebug,node-name=faults,image=f,unshare-child-perms.0=write",
      "driver=blkverify,node-name=top,test=faults,raw=f"};
  EXPECT_EQ(why(unshared),
            "Permission conflict on node 'f': permissions 'write' are both required by node 'top' "
            "(uses node 'f' as 'other' child) and unshared by node 'faults' (uses node 'f' as "
            "'filtered' child).");
  const std::string target[] = {"driver=file,node-name=f,filename=base",
                                "driver=copy-before-write,node-name=top,file=f,target=f"};
  EXPECT_NE(why(target).find("Permission conflict on node 'f'"), std::string::npos);
}

TEST_F(OpenTreeTest, ReadersShareANode) {
  make("base");
  make("image");
  make("other");
  // The disk of `base` holds the image `other`.
  Result<Disk> other = open(R"({"driver":"raw","file":{"filename":"other"}})");
  Result<Disk> base = open(R"({"driver":"qcow2","file":{"filename":"base"}})", {.writable = true});
  ASSERT_TRUE(other && base);
  const std::string bytes = read(*other, 0, std::min(other->size(), base->size()));
  ASSERT_TRUE(reactor_.run(base->device->write(0, bytes_of(std::string_view(bytes)), {})));
  close(*other);
  close(*base);
  const std::string texts[] = {"driver=qcow2,node-name=base,file.filename=base",
                               "driver=qcow2,node-name=mid,file.filename=image,backing=base",
                               "driver=qcow2,node-name=top,file=base,backing=mid"};
  Result<Disk> disk = open_parsed(parse_device_list(texts, "top"), {});
  ASSERT_TRUE(disk) << disk.error().message();
  EXPECT_EQ(read(*disk, 0), "Q") << "through `mid`, the first byte of the image in `base`";
  close(*disk);
  // What shows through an image may not change.
  disk = open_parsed(parse_device_list(texts, "top"), {.writable = true});
  ASSERT_FALSE(disk);
  EXPECT_NE(disk.error().message().find("Permission conflict on node 'base': permissions 'write'"),
            std::string::npos)
      << disk.error().message();
  EXPECT_EQ(failure(kImage, {.writable = true}), "");
}

TEST_F(OpenTreeTest, WhoeverLeavesLastClosesASharedNode) {
  make("base");
  make("image");
  const std::string both[] = {"driver=qcow2,node-name=disk,file.filename=base",
                              "driver=qcow2,node-name=mid,file.filename=image,backing=disk",
                              "driver=qcow2,node-name=top,file=disk,backing=mid"};
  for (int i = 0; i < 2; ++i) {  // Nothing is left of the first time.
    Result<Disk> disk = open_parsed(parse_device_list(both, "top"), {});
    ASSERT_FALSE(disk) << "there is no image inside the disk";
    EXPECT_EQ(failure(kImage, {.writable = true}), "");
  }
}

TEST_F(OpenTreeTest, AnImageMayNameDevicesWhereItsOpenerAllowsIt) {
  const std::string below = R"(json:{"driver":"qcow2","file":{"driver":"file","filename":"base"}})";
  make("base");
  Result<Disk> base = open(R"({"driver":"qcow2","file":{"filename":"base"}})", {.writable = true});
  ASSERT_TRUE(base);
  fill(*base, 0, 'b');
  close(*base);
  make("image", below);
  Result<Disk> disk = reactor_.run(open_disk(opener_, "image", {}));
  ASSERT_FALSE(disk) << "the simulator's opener knows only files";
  EXPECT_NE(disk.error().message().find("json:"), std::string::npos) << disk.error().message();
}

/// Lets images name devices, as the policy `any` does.
class AllowingOpener final : public FileOpener {
 public:
  explicit AllowingOpener(FileOpener& below) : below_(below) {}
  Result<std::unique_ptr<File>> open(std::string_view name, FileOptions options) override {
    return below_.open(name, options);
  }
  Result<std::unique_ptr<File>> open_named_by_image(std::string_view image, std::string_view name,
                                                    FileOptions options) override {
    named_by.emplace_back(image);
    return below_.open_named_by_image(image, name, options);
  }
  Result<void> allows_devices(std::string_view, std::string_view) const override { return {}; }
  std::vector<std::string> named_by;

 private:
  FileOpener& below_;
};

TEST_F(OpenTreeTest, AnImageNamesReadersOfFilesOnly) {
  AllowingOpener opener(opener_);
  const auto open_image = [&] { return reactor_.run(open_disk(opener, "image", {})); };
  make("base");
  Result<Disk> base = open(R"({"driver":"qcow2","file":{"filename":"base"}})", {.writable = true});
  ASSERT_TRUE(base);
  fill(*base, 0, 'b');
  close(*base);
  make("image", R"(json:{"file":{"filename":"base"}})");  // The header says which format.
  Result<Disk> disk = open_image();
  ASSERT_TRUE(disk) << disk.error().message();
  EXPECT_EQ(read(*disk, 0), "b");
  EXPECT_EQ(opener.named_by, std::vector<std::string>{"image"});
  close(*disk);

  for (const auto& [name, why] : std::initializer_list<std::pair<const char*, const char*>>{
           {R"(json:{"driver":"null-co"})", "may not be named by an image"},
           {R"(json:{"driver":"qcow2","file":{"driver":"blkdebug","image":{"filename":"base"}}})",
            "may not be named by an image"},
           {R"(json:{"driver":"qcow2","file":{"filename":"image"}})", "circle"},
           {R"(json:{"driver":"qcow2"})", "must be specified for \"file\""},
           {R"(json:{)", "parse"},
       }) {
    make("image", name);
    disk = open_image();
    ASSERT_FALSE(disk) << name;
    EXPECT_NE(disk.error().message().find(why), std::string::npos) << disk.error().message();
  }
}

TEST_F(OpenTreeTest, StorageIsWhatLiesBelowTheFormat) {
  make("image");
  const auto storage = [&](std::string_view json) {
    return reactor_.run(
        open_storage(opener_, *parse_device_name(cat("json:", json)), {.reactor = &reactor_}));
  };
  Result<Storage> image = storage(kImage);
  ASSERT_TRUE(image) << image.error().message();
  EXPECT_EQ(image->format, DiskFormat::qcow2);
  EXPECT_EQ(image->device->name(), "image");
  EXPECT_TRUE(reactor_.run(image->device->close()));
  Result<Storage> null = storage(R"({"driver":"null-co"})");
  ASSERT_TRUE(null);
  EXPECT_EQ(null->format, DiskFormat::raw);
  EXPECT_EQ(null->driver, "null-co");
  EXPECT_TRUE(reactor_.run(null->device->close()));
}

}  // namespace
}  // namespace byre
