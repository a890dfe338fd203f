// SPDX-License-Identifier: Apache-2.0
/// blockdev-create: a job that makes a file, or an image in a node.
#include <bit>
#include <utility>

#include "block/entrance.h"
#include "daemon/jobs.h"
#include "daemon/modules.h"
#include "job/create.h"
#include "job/unfinished.h"

namespace byre::qmp {

namespace {

enum class CreateDriver : uint8_t { file, qcow2 };
const Enumeration& definition_of(const CreateDriver*) {
  constexpr const char* kWhy = "byre creates qcow2 images, and files";
  static const Enumeration kDrivers({"file", "qcow2"}, {{"luks", kWhy},
                                                        {"nfs", kWhy},
                                                        {"parallels", kWhy},
                                                        {"qcow", kWhy},
                                                        {"qed", kWhy},
                                                        {"rbd", kWhy},
                                                        {"ssh", kWhy},
                                                        {"vdi", kWhy},
                                                        {"vhdx", kWhy},
                                                        {"vmdk", kWhy},
                                                        {"vpc", kWhy}});
  return kDrivers;
}
enum class VersionWord : uint8_t { v2, v3 };
const Enumeration& definition_of(const VersionWord*) {
  static const Enumeration kWords({"v2", "v3"});
  return kWords;
}
enum class PreallocationWord : uint8_t { off, metadata, falloc, full };
const Enumeration& definition_of(const PreallocationWord*) {
  static const Enumeration kWords({"off", "metadata", "falloc", "full"});
  return kWords;
}
enum class CompressionWord : uint8_t { zlib, zstd };
const Enumeration& definition_of(const CompressionWord*) {
  static const Enumeration kWords({"zlib", "zstd"});
  return kWords;
}

/// Of both drivers.
struct NewDisk {
  CreateDriver driver = CreateDriver::file;
  uint64_t size = 0;
  PreallocationWord preallocation = PreallocationWord::off;
  // Of a file.
  std::string filename;
  bool nocow = false;
  std::optional<uint64_t> extent_size_hint;
  // Of an image.
  std::string file;
  VersionWord version = VersionWord::v3;
  std::optional<std::string> backing_file, backing_format;
  uint64_t cluster_size = 64 * KiB;
  uint32_t refcount_bits = 16;
  bool extended_l2 = false;
  bool lazy_refcounts = false;
  CompressionWord compression = CompressionWord::zlib;
};
const Struct& definition_of(const NewDisk*) {
  static const Struct kStruct(
      {field("driver", &NewDisk::driver, "what is made")}, "driver",
      {{"file",
        {field("filename", &NewDisk::filename, "a file that is there loses its contents"),
         field("size", &NewDisk::size, "bytes"),
         with_default("preallocation", &NewDisk::preallocation, "how its blocks are allocated"),
         with_default("nocow", &NewDisk::nocow, "turn off copy-on-write (btrfs)"),
         field("extent-size-hint", &NewDisk::extent_size_hint, "for XFS; 0: none")}},
       {"qcow2",
        {field("file", &NewDisk::file, "the node that the image is made in"),
         field("size", &NewDisk::size, "of the disk, bytes"),
         with_default("version", &NewDisk::version, "of the format"),
         field("backing-file", &NewDisk::backing_file, "what lies below"),
         field("backing-fmt", &NewDisk::backing_format, "its format"),
         with_default("cluster-size", &NewDisk::cluster_size, "bytes"),
         with_default("preallocation", &NewDisk::preallocation, "what gets clusters at once"),
         with_default("lazy-refcounts", &NewDisk::lazy_refcounts, "refcounts may be postponed"),
         with_default("refcount-bits", &NewDisk::refcount_bits, "width of a refcount"),
         with_default("extended-l2", &NewDisk::extended_l2, "clusters have subclusters"),
         with_default("compression-type", &NewDisk::compression, "of compressed clusters"),
         refused_field("data-file", "make the image with `byre create -o data_file=...`"),
         refused_field("data-file-raw", "make the image with `byre create -o data_file_raw=on`"),
         refused_field("encrypt", "byre makes no encrypted images")}}});
  return kStruct;
}

struct Create {
  std::string id;
  NewDisk options;
};
const Struct& definition_of(const Create*) {
  static const Struct kStruct({field("job-id", &Create::id, "its name"),
                               field("options", &Create::options, "what is made, and how")});
  return kStruct;
}

/// What is refused in QEMU's words; check_create() knows all else.
Result<void> check_widths(const NewDisk& wanted) {
  if (!std::has_single_bit(wanted.cluster_size) || wanted.cluster_size < 512 ||
      wanted.cluster_size > 2 * MiB) {
    return invalid("Cluster size must be a power of two between 512 and 2048k");
  }
  if (!std::has_single_bit(wanted.refcount_bits) || wanted.refcount_bits > 64) {
    return invalid("Refcount width must be a power of two and may not exceed 64 bits");
  }
  return {};
}

CreateOptions image_options(const NewDisk& wanted) {
  CreateOptions options;
  options.size = wanted.size;
  options.version = wanted.version == VersionWord::v2 ? 2 : 3;
  options.cluster_size = wanted.cluster_size;
  options.refcount_bits = wanted.refcount_bits;
  options.extended_l2 = wanted.extended_l2;
  options.lazy_refcounts = wanted.lazy_refcounts;
  if (wanted.compression == CompressionWord::zstd) options.compression = Compression::zstd;
  options.backing_file = wanted.backing_file.value_or("");
  options.backing_format = wanted.backing_format.value_or("");
  options.preallocation = static_cast<Preallocation>(wanted.preallocation);
  return options;
}
static_assert(static_cast<int>(PreallocationWord::full) == static_cast<int>(Preallocation::full));

/// Whatever becomes of it, one thing is done in the end.
class CreateWork : public JobWork {
 public:
  JobKind kind() const override { return JobKind::create; }
  std::vector<Node*> nodes() const override { return {}; }
  Task<void> run(Job& job) override {
    Result<void> made = co_await make().result();
    job.progress().set(1, 1);
    co_await std::move(made);
  }
  Task<void> clean(Job&) override { co_return; }

 private:
  virtual Task<void> make() = 0;
};

class CreateFile final : public CreateWork {
 public:
  CreateFile(Daemon& daemon, NewDisk wanted) : daemon_(daemon), wanted_(std::move(wanted)) {}

 private:
  Task<void> make() override {
    CreateDiskOptions options{.format = DiskFormat::raw,
                              .image = image_options(wanted_),
                              .replace = true,
                              .no_copy_on_write = wanted_.nocow,
                              .extent_size_hint = wanted_.extent_size_hint};
    Result<void> made = co_await create_disk(daemon_.reactor(), daemon_.files(), wanted_.filename,
                                             std::move(options))
                            .result();
    if (made) co_return;
    const int number = made.error().sys_errno();
    // These say more than the number does.
    const Errc code = made.error().code();
    const bool is_plain = number != 0 && code != Errc::denied && code != Errc::busy;
    if (!is_plain) co_await std::move(made);
    co_await fail(errno_error(number, cat("Could not create '", wanted_.filename, "'")));
  }

  Daemon& daemon_;
  const NewDisk wanted_;
};

class CreateImage final : public CreateWork {
 public:
  CreateImage(Daemon& daemon, NewDisk wanted) : daemon_(daemon), wanted_(std::move(wanted)) {}

 private:
  /// What is in the node is gone.
  Task<void> make() override {
    NamedNode* const node = co_await daemon_.nodes().need(wanted_.file, wanted_.file);
    const CreateOptions options = image_options(wanted_);
    co_await check_widths(wanted_);
    (void)co_await check_create(options);
    co_await node->check_free();
    Entrance entrance(Child::to(node->entry()));  // From here on nobody deletes the node.
    Result<void> made = co_await daemon_.nodes().prepare_to_write(*node).result();
    if (made) made = co_await write(entrance, options).result();
    (void)co_await entrance.edge().close().result();
    co_await std::move(made);
  }
  /// Whatever ends it, the node holds a whole image or none: its first sector comes last.
  static Task<void> write(Entrance& entrance, CreateOptions options) {
    co_await entrance.edge().set_permissions(
        {.uses = {.read = true, .write = true, .resize = true}, .shares = Access::none()});
    const Entrance::Pass pass = co_await entrance.enter();
    if (!pass->writable()) co_await fail(Error(Errc::read_only, "Block node is read-only"));
    if (pass->can_grow()) co_await pass->resize(0);
    BeingMade image(*pass, {.keep_start = true, .sync_start = !pass->can_grow()});
    co_await create_image(image, options);
    co_await image.reveal(true);
  }

  Daemon& daemon_;
  const NewDisk wanted_;
};

Task<Json> blockdev_create(Call& call, Create args) {
  std::unique_ptr<JobWork> work;
  if (args.options.driver == CreateDriver::file) {
    work = std::make_unique<CreateFile>(call.daemon(), std::move(args.options));
  } else {
    work = std::make_unique<CreateImage>(call.daemon(), std::move(args.options));
  }
  DaemonJobs& jobs = call.daemon().jobs();
  const auto transaction = jobs.list().begin_transaction();
  JobOptions options{.id = std::move(args.id), .auto_dismiss = false};
  (void)co_await jobs.add(std::move(work), std::move(options), transaction);
  jobs.list().start(*transaction);
  co_return Json();
}
const Command<Create> kCreate({.name = "blockdev-create",
                               .help = "makes a file, or an image in a node, as a job",
                               .run = blockdev_create});

}  // namespace

void add_create_commands(CommandSet& set) { set.add(kCreate); }

}  // namespace byre::qmp
