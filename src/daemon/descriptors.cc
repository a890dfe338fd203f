// SPDX-License-Identifier: Apache-2.0
#include "daemon/descriptors.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <limits>

#include "base/option_text.h"
#include "io/channel.h"

namespace byre::qmp {

Result<DescriptorSets::Added> DescriptorSets::add(Descriptor fd, std::optional<uint32_t> set,
                                                  std::string opaque) {
  size_t count = 0;
  for (const auto& [id, entries] : sets_) count += entries.size();
  if (count >= kSetMax) return invalid("There are ", kSetMax, " descriptors in sets already");
  uint32_t id = 0;
  if (set) {
    id = *set;
  } else {
    while (sets_.contains(id)) ++id;
  }
  const int number = fd.get();
  sets_[id].push_back({std::move(fd), std::move(opaque)});
  return Added{id, number};
}

Result<void> DescriptorSets::remove(uint32_t set, std::optional<int> number) {
  const auto found = sets_.find(set);
  const auto not_found = [&] {
    return Error(Errc::not_found,
                 number
                     ? cat("File descriptor named 'fdset-id:", set, ", fd:", *number, "' not found")
                     : cat("File descriptor named 'fdset-id:", set, "' not found"));
  };
  if (found == sets_.end()) return not_found();
  if (number) {
    const size_t removed =
        std::erase_if(found->second, [&](const Entry& entry) { return entry.fd.get() == *number; });
    if (removed == 0) return not_found();
  }
  if (!number || found->second.empty()) sets_.erase(found);
  return {};
}

Json DescriptorSets::describe() const {
  Json all = Json::array();
  for (const auto& [id, entries] : sets_) {
    Json fds = Json::array();
    for (const Entry& entry : entries) {
      Json one = {{"fd", entry.fd.get()}};
      if (!entry.opaque.empty()) one["opaque"] = entry.opaque;
      fds.push_back(std::move(one));
    }
    all.push_back({{"fdset-id", id}, {"fds", std::move(fds)}});
  }
  return all;
}

Result<Descriptor> DescriptorSets::open(uint32_t set, bool writable) const {
  const auto found = sets_.find(set);
  if (found == sets_.end()) return errno_error(ENOENT, cat("descriptor set ", set));
  for (const Entry& entry : found->second) {
    const int mode = fcntl(entry.fd.get(), F_GETFL) & O_ACCMODE;
    if (writable ? mode != O_RDWR : mode == O_WRONLY) continue;
    Descriptor copy(fcntl(entry.fd.get(), F_DUPFD_CLOEXEC, 3));
    if (!copy) return errno_error(errno, cat("descriptor set ", set));
    return copy;
  }
  return errno_error(
      EACCES, cat("descriptor set ", set, " has none that can be ", writable ? "written" : "read"));
}

void Descriptors::arrived(std::vector<Descriptor> passed) {
  for (Descriptor& one : passed) {
    if (unnamed_.size() < Channel::kPassedMax) unnamed_.push_back(std::move(one));
  }
}

std::optional<Descriptor> Descriptors::take_unnamed() {
  if (unnamed_.empty()) return std::nullopt;
  Descriptor first = std::move(unnamed_.front());
  unnamed_.erase(unnamed_.begin());
  return first;
}

Result<void> Descriptors::name(std::string name) {
  std::optional<Descriptor> fd = take_unnamed();
  if (!fd) return invalid("No file descriptor supplied via SCM_RIGHTS");
  if (name.empty() || (name[0] >= '0' && name[0] <= '9')) {
    return invalid("Parameter 'fdname' expects a name not starting with a digit");
  }
  if (!named_.contains(name) && named_.size() >= kNamesMax) {
    return invalid("There are ", kNamesMax, " descriptors with names already");
  }
  named_.insert_or_assign(std::move(name), *std::move(fd));
  return {};
}

Result<void> Descriptors::close(std::string_view name) {
  const auto found = named_.find(name);
  if (found == named_.end()) {
    return Error(Errc::not_found, cat("File descriptor named '", name, "' not found"));
  }
  named_.erase(found);
  return {};
}

Result<Descriptor> Descriptors::take(const std::string& name, bool numbers_allowed) {
  if (!name.empty() && name[0] >= '0' && name[0] <= '9') {
    const Result<uint64_t> number = parse_number(name, 3, std::numeric_limits<int>::max());
    if (!number || !numbers_allowed || fcntl(static_cast<int>(*number), F_GETFD) < 0) {
      return invalid("File descriptor '", name, "' is not a socket that this process was given");
    }
    return Descriptor(static_cast<int>(*number));
  }
  const auto found = named_.find(name);
  if (found == named_.end()) {
    return Error(Errc::not_found, cat("File descriptor named '", name, "' has not been found"));
  }
  Descriptor taken = std::move(found->second);
  named_.erase(found);
  return taken;
}

Result<std::unique_ptr<File>> FdsetOpener::open(std::string_view name, FileOptions options) {
  constexpr std::string_view kPrefix = "/dev/fdset/";
  if (!name.starts_with(kPrefix)) return below_.open(name, options);
  const Result<uint64_t> set =
      parse_number(name.substr(kPrefix.size()), 0, std::numeric_limits<uint32_t>::max());
  if (!set) return invalid("'", name, "' names no descriptor set");
  // What was passed is there.
  if (options.create && !options.replace) return errno_error(EEXIST, cat("open '", name, "'"));
  BYRE_TRY(fd, sets_.open(static_cast<uint32_t>(*set), options.writable));
  return File::adopt(reactor_, fd.release(), std::string(name), options);
}

}  // namespace byre::qmp
