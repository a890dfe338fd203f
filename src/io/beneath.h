// SPDX-License-Identifier: Apache-2.0
/// Paths and folders: where a file really lies, and opening it without leaving a folder (openat2).
///
/// What counts is where a file lies and not how it is named, so names are first followed to the
/// end; what is then opened stays beneath the folder whatever becomes of links meanwhile.
/// Not here: what may be opened (file_opener.h, rooted_opener.h).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace byre {

/// The folder of a path, by its text: "." where it has no slash.
std::string_view folder_of(std::string_view path);

/// openat2() with RESOLVE_NO_MAGICLINKS and `resolve`; a new file gets the mode 0600.
int open_at(int folder, const std::string& name, int flags, uint64_t resolve);

/// Where the file at `path` lies, all links followed; empty when that cannot be told.
std::string real_path(const std::string& path);
/// The same, also when the last part of `path` is not there.
std::string real_path_of_new(const std::string& path);

/// What `path` is from `folder`, when it lies in or below it; both real.
std::optional<std::string> below(const std::string& folder, const std::string& path);

}  // namespace byre
