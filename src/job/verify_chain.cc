// SPDX-License-Identifier: Apache-2.0
#include "job/verify_chain.h"

#include <set>

#include "block/raw.h"
#include "job/device_tree.h"
#include "qcow2/image.h"
#include "qcow2/repair/check.h"

namespace byre {
namespace {

class ChainCheck {
 public:
  ChainCheck(FileOpener& opener, bool share_lock, CheckOptions options, CheckReport& report)
      : opener_(opener), share_lock_(share_lock), options_(std::move(options)), report_(report) {
    options_.repair = Repair::none;
    options_.progress = nullptr;
  }

  Task<void> run(Device& top) {
    ImageHeader head = co_await load_image_header(top, OpenFor::repair);
    seen_.insert(top.name());
    std::string image = top.name();
    if (head.header.has(kDataFile)) co_await look_at_data_file(image, head);
    for (uint32_t depth = 1; head.backing_file; ++depth) {
      if (names_a_tree(*head.backing_file)) {
        add(Severity::note, image, "backing file ", quoted(*head.backing_file),
            " names devices, which are not looked at");
        co_return;
      }
      const Result<std::string> name = plain_name(*head.backing_file);
      if (!name) co_return broken(*head.backing_file, name.error().message());
      const std::optional<std::string>& format = head.extensions.backing_format;
      if (!format) {
        broken(*name, cat(quoted(image), " does not say which format it has"));
      } else if (*format != "qcow2" && *format != "raw" && *format != "file") {
        co_return broken(*name, cat(quoted(image), " says that it has the format ", quoted(*format),
                                    ", which byre does not read"));
      }
      if (!seen_.insert(resolve_name(image, *name)).second || depth > kChainMax) {
        co_return broken(*name, "the chain goes in a circle");
      }
      Result<std::unique_ptr<File>> file =
          opener_.open_named_by_image(image, *name, {.share_lock = share_lock_});
      if (!file) co_return unopened("backing file", *name, file.error());
      RawDevice layer(*std::move(file));
      const Result<bool> further = co_await examine(layer, format, head).result();
      image = layer.name();
      (void)co_await layer.close().result();
      if (!further) co_return broken(*name, further.error().message());
      if (!*further) co_return;
    }
  }

 private:
  template <class... Parts>
  void add(Severity severity, const std::string& file, const Parts&... parts) {
    report_.findings.push_back(
        {.severity = severity,
         .kind = FindingKind::backing,
         .structure = "backing file",
         .repair = severity == Severity::note ? RepairKind::none : RepairKind::refuse,
         .text = cat(parts...),
         .file = file});
    if (severity == Severity::corruption) {
      ++report_.corruptions;
      ++report_.corruptions_beyond_qemu;
    }
  }
  void broken(const std::string& name, std::string_view why) {
    add(Severity::corruption, name, "backing file ", quoted(name), ": ", why);
  }

  /// What may not be opened is not known to be wrong.
  void unopened(std::string_view what, const std::string& name, const Error& error) {
    const bool denied = error.code() == Errc::denied;
    add(denied ? Severity::note : Severity::corruption, name, what, " ", quoted(name), ": ",
        error.message(), denied ? "; --follow any opens it" : "");
    report_.findings.back().structure = what;
    report_.check_errors += denied;
  }

  /// One layer; true when there is another below it, which `head` then names.
  Task<bool> examine(RawDevice& file, const std::optional<std::string>& format, ImageHeader& head) {
    const uint64_t above = head.header.size;
    std::byte start[4] = {};
    if (file.size() >= sizeof start) co_await file.read(0, start, IoTag::header_read);
    const bool is_image = looks_like_qcow2(start);
    const bool as_image = format ? *format == "qcow2" : is_image;
    if (!as_image) {
      if (is_image) {
        add(Severity::note, file.name(), "backing file ", quoted(file.name()),
            " is used as raw, and begins like a qcow2 image");
      }
      say_size(file.name(), "raw", file.size(), above);
      co_return false;
    }
    if (!is_image) co_return corrupt("the image above says that it is qcow2, and it is not");
    head = co_await load_image_header(file, OpenFor::repair);
    say_size(file.name(), "qcow2", head.header.size, above);
    if (head.header.has(kDataFile)) co_await look_at_data_file(file.name(), head);
    CheckReport own = co_await check_image(file, options_);
    report_.corruptions += own.corruptions;
    report_.corruptions_beyond_qemu += own.corruptions;  // QEMU does not look at this file at all.
    report_.check_errors += own.check_errors;
    for (Finding& finding : own.findings) {
      finding.file = file.name();
      finding.text = cat(quoted(file.name()), ": ", finding.text);
      if (report_.findings.size() < options_.findings_max) {
        report_.findings.push_back(std::move(finding));
      }
    }
    add(Severity::note, file.name(), "backing file ", quoted(file.name()), ": ", own.corruptions,
        " errors, ", own.leaks, " leaked clusters");
    co_return head.backing_file.has_value();
  }

  void say_size(const std::string& name, std::string_view format, uint64_t size, uint64_t above) {
    if (size == above) return;
    add(Severity::note, name, "backing file ", quoted(name), " (", format, ") has a disk of ", size,
        " bytes under one of ", above,
        size < above ? ": behind it are zeros" : ": its end is hidden");
  }

  Task<void> look_at_data_file(const std::string& image, const ImageHeader& head) {
    const std::optional<std::string>& named = head.extensions.data_file_name;
    if (!named) co_return data_broken(image, "the image does not name its external data file");
    const Result<std::string> name = plain_name(*named);
    if (!name) co_return data_broken(*named, name.error().message());
    Result<std::unique_ptr<File>> file =
        opener_.open_named_by_image(image, *name, {.share_lock = share_lock_});
    if (!file) co_return unopened("data file", *name, file.error());
    if ((*file)->size() < head.header.size && head.extensions.data_file_name &&
        (head.header.autoclear & kRawDataFile) != 0) {
      data_broken(*name, cat("it has ", (*file)->size(),
                             " bytes, and the disk, which it holds one "
                             "to one, ",
                             head.header.size));
    }
    RawDevice device(*std::move(file));
    (void)co_await device.close().result();
  }
  void data_broken(const std::string& name, std::string_view why) {
    add(Severity::corruption, name, "data file ", quoted(name), ": ", why);
    report_.findings.back().structure = "data file";
  }

  FileOpener& opener_;
  const bool share_lock_;
  CheckOptions options_;
  CheckReport& report_;
  std::set<std::string> seen_;
};

}  // namespace

Task<void> verify_chain(FileOpener& opener, bool share_lock, Device& file, CheckOptions options,
                        CheckReport& report) {
  ChainCheck check(opener, share_lock, std::move(options), report);
  co_await check.run(file).doing("backing chain of ", quoted(file.name()));
}

}  // namespace byre
