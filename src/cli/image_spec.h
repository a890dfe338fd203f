// SPDX-License-Identifier: Apache-2.0
/// ImageSpec: an image named by its layers, as QEMU's programs take it: `json:{...}` in the place
/// of a file name, or --image-opts.
///
/// Known are a format (raw or qcow2) over a file, no backing file (`"backing": null`), the filter
/// `compress` on top, and a part of a raw file (`offset`, `size`).  Everything else is an error
/// that names it; nothing is ignored.  Such names come from a command line only: what an image
/// names is a path (io/file_opener.h).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/error.h"

namespace byre {

struct ImageSpec {
  std::string file;                   ///< For path_of() (job/open.h).
  std::optional<std::string> format;  ///< None: its first bytes decide.
  bool without_backing = false;
  bool compress = false;
  std::optional<uint64_t> offset;  ///< Of the part of a raw file that is the disk.
  std::optional<uint64_t> size;
};

/// `json:{"driver": "qcow2", "file": {"driver": "file", "filename": "disk.qcow2"}}`
Result<ImageSpec> parse_json_name(std::string_view name);
/// `driver=qcow2,file.driver=file,file.filename=disk.qcow2`
Result<ImageSpec> parse_image_opts(std::string_view text);

}  // namespace byre
