// SPDX-License-Identifier: Apache-2.0
#include "job/chain.h"

#include <optional>
#include <set>

#include "block/raw.h"
#include "job/device_tree.h"
#include "qcow2/core/image_header.h"

namespace byre {

namespace {

constexpr FileOptions kLook{.lock = false};
constexpr int kReads = 3;

/// The header, read again while it looks damaged.
Task<ImageHeader> read_head(Device& file) {
  for (int tried = 1;; ++tried) {
    Result<ImageHeader> head = co_await load_image_header(file).result();
    if (head || head.error().code() != Errc::corrupt || tried == kReads) co_return std::move(head);
  }
}

Task<void> examine_data_file(FileOpener& opener, const std::string& image,
                             const ImageHeader& head) {
  if (!head.header.has(kDataFile)) co_return;
  const std::optional<std::string>& named = head.extensions.data_file_name;
  if (!named) {
    co_await fail(
        invalid("the image has an external data file but does not name it; give its name"));
  }
  const std::string name = co_await plain_name(*named);
  const std::unique_ptr<File> file = co_await opener.open_named_by_image(image, name, kLook);
}

struct Examined {
  ChainFile file;
  std::optional<BackingFile> below;
};

Task<Examined> examine(FileOpener& opener, std::unique_ptr<File> file, DiskFormat format) {
  Examined examined{
      .file = {.name = file->properties().name, .format = format, .size = file->size()}};
  (void)co_await find_format(*file, format);
  if (format == DiskFormat::qcow) {
    co_await fail(
        unsupported("an image of qcow version 1 cannot lie below another image; make a qcow2 image "
                    "of it (byre ",
                    "convert -O qcow2 ", quoted(examined.file.name), " COPY)"));
  }
  if (format == DiskFormat::qcow2) {
    RawDevice device(std::move(file));
    const ImageHeader head = co_await read_head(device);
    if (head.header.crypt_method != CryptMethod::none) {
      co_await fail(unsupported("the image is encrypted"));
    }
    co_await examine_data_file(opener, examined.file.name, head).doing("data file");
    examined.file.size = head.header.size;
    if (head.backing_file && names_a_tree(*head.backing_file)) {
      // Whoever opens the disk looks further; its size does not depend on it.
      co_await opener.allows_devices(examined.file.name, *head.backing_file);
    } else if (head.backing_file) {
      examined.below = co_await backing_of(head);
    }
  }
  examined.file.size = round_up(examined.file.size, kSectorSize);
  co_return examined;
}

}  // namespace

Task<std::vector<ChainFile>> read_chain(FileOpener& opener, std::string path, DiskFormat format,
                                        uint64_t files_max) {
  std::vector<ChainFile> chain;
  std::set<std::pair<uint64_t, uint64_t>> seen;
  std::unique_ptr<File> file = co_await opener.open(path, kLook);
  for (;;) {
    const File::Properties& properties = file->properties();
    const std::string name = properties.name;
    const bool fresh = seen.emplace(properties.device, properties.inode).second;
    if (!fresh) {
      co_await fail(corrupt("backing file ", quoted(name), ": the backing chain goes in a circle"));
    }
    if (chain.size() == files_max) {
      co_await fail(unsupported("the backing chain is longer than ", files_max, " images"));
    }
    Result<Examined> examined = co_await examine(opener, std::move(file), format).result();
    if (!examined && chain.empty()) co_return std::move(examined).error();
    if (!examined)
      co_return std::move(examined).error().while_doing(cat("backing file ", quoted(name)));
    chain.push_back(std::move(examined->file));
    if (!examined->below) co_return std::move(chain);
    format = examined->below->is_image ? DiskFormat::qcow2 : DiskFormat::raw;
    Result<std::unique_ptr<File>> below =
        opener.open_named_by_image(name, examined->below->name, kLook);
    if (!below) {
      co_return std::move(below).error().while_doing(
          cat("backing file ", quoted(examined->below->name)));
    }
    file = *std::move(below);
  }
}

Task<void> check_chain_memory(FileOpener& opener, Device& top) {
  uint64_t total = 0;
  std::set<std::pair<uint64_t, uint64_t>> seen;
  std::unique_ptr<RawDevice> below;
  for (;;) {
    Device& file = below ? *below : top;
    const std::string name = file.name();
    const Result<ImageHeader> head = co_await load_image_header(file, OpenFor::repair).result();
    if (!head) co_return;
    total += uint64_t{head->header.l1_entries} * 8;
    if (total > kChainL1SizeMax) {
      co_await fail(unsupported(
          "backing file ", quoted(name), ": with its L1 table those of the chain take ", total,
          " bytes, at most ", kChainL1SizeMax, "; make one image of it and what is below it (byre ",
          "convert -O qcow2 ", quoted(name),
          " COPY), then name that instead (byre amend --force "
          "-o backing_file=COPY,backing_fmt=qcow2 IMAGE)"));
    }
    if (!head->backing_file) co_return;
    const Result<BackingFile> next = backing_of(*head);
    if (!next || !next->is_image) co_return;
    Result<std::unique_ptr<File>> opened = opener.open_named_by_image(name, next->name, kLook);
    if (!opened) co_return;
    const File::Properties& properties = (*opened)->properties();
    if (!seen.emplace(properties.device, properties.inode).second) co_return;
    below = std::make_unique<RawDevice>(*std::move(opened));
  }
}

}  // namespace byre
