// SPDX-License-Identifier: Apache-2.0
#include "qcow2/check/header_check.h"

#include <string>

#include "format/limits.h"

namespace byre {
namespace {

/// Where the header has the autoclear features.
constexpr uint64_t kAutoclearAt = 88;
constexpr uint64_t kHeaderLengthAt = 100;

class HeaderCheck {
 public:
  explicit HeaderCheck(ScanContext& scan) : scan_(scan), result_(scan.result()) {}

  void check() {
    Header header = result_.head.header;
    if ((header.autoclear & kRawDataFile) != 0 && !header.has(kDataFile)) {
      // Nobody opens it, yet the bit says nothing.
      scan_.fault(
          {.kind = FindingKind::stray_flag,
           .structure = "header",
           .at = kAutoclearAt,
           .length = 8,
           .repair = RepairKind::fix_flag},
          "header: the bit for raw external data is set, but there is no external data file");
      result_.repairable_entries = true;
      header.autoclear &= ~kRawDataFile;
    }
    Extensions extensions = result_.head.extensions;
    check_readers(header, extensions);
    if (header.has(kCorrupt)) {
      scan_.note(FindingKind::oddity, "the image is marked corrupt, so nobody may write to it");
    }
    for (std::string& oddity : oddities(header, extensions)) {
      scan_.note(FindingKind::oddity, oddity);
    }
  }

 private:
  /// What byre reads and others refuse; it is taken out of what is checked afterwards.
  void check_readers(Header& header, Extensions& extensions) {
    const auto refused = [&](uint64_t at, uint64_t length, RepairKind repair,
                             const auto&... parts) {
      result_.repairable_header |= repair != RepairKind::refuse;
      scan_.fault({.kind = FindingKind::header,
                   .structure = "header",
                   .at = at,
                   .length = length,
                   .repair = repair},
                  "header: ", parts..., "; other readers refuse the image");
    };
    if (header.header_length % 8 != 0) {
      refused(kHeaderLengthAt, 4, RepairKind::complete, "its length is ", header.header_length,
              ", not a multiple of 8");
      header.header_length = static_cast<uint32_t>(round_up(header.header_length, 8));
    }
    if (const auto& format = extensions.backing_format;
        format && format->size() > kBackingFormatSizeMax) {
      const bool meant = result_.head.backing_file.has_value();
      refused(header.header_length, 0, meant ? RepairKind::refuse : RepairKind::drop,
              "the backing format ", quoted(*format), " has ", format->size(), " bytes, at most ",
              kBackingFormatSizeMax, " are allowed",
              meant ? " (amend --force -o backing_fmt=FORMAT names the right one)" : "");
      extensions.backing_format.reset();
    }
    if ((header.autoclear & kBitmaps) != 0 && !extensions.bitmaps) {
      refused(kAutoclearAt, 8, RepairKind::fix_flag, "the bit for bitmaps is set without bitmaps");
      header.autoclear &= ~kBitmaps;
    }
    const auto is_unsound = [](const UnknownExtension& extension) {
      return extension.type == kBitmapsExtension;
    };
    if (std::erase_if(extensions.unknown, is_unsound) != 0) {
      refused(header.header_length, 0, RepairKind::drop,
              "the bitmaps extension is unsound, and its bit says that nobody uses it");
    }
  }

  ScanContext& scan_;
  ScanResult& result_;
};

}  // namespace

void check_header(ScanContext& scan) {
  HeaderCheck header(scan);
  header.check();
}

}  // namespace byre
