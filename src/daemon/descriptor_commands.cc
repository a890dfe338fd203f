// SPDX-License-Identifier: Apache-2.0
/// Commands for descriptors that clients pass along.
#include "daemon/daemon.h"
#include "daemon/modules.h"

namespace byre::qmp {

namespace {

struct NamedFd {
  std::string name;
};
const Struct& definition_of(const NamedFd*) {
  static const Struct kStruct({field("fdname", &NamedFd::name, "what it is called from here on")});
  return kStruct;
}

Task<Json> getfd(Call& call, NamedFd args) {
  co_await call.descriptors.name(std::move(args.name));
  co_return Json();
}
const Command<NamedFd> kGetFd({.name = "getfd",
                               .help = "names the descriptor that came along, for this client",
                               .run = getfd});

Task<Json> closefd(Call& call, NamedFd args) {
  co_await call.descriptors.close(args.name);
  co_return Json();
}
const Command<NamedFd> kCloseFd({.name = "closefd",
                                 .help = "closes a descriptor that has a name",
                                 .run = closefd});

struct AddFd {
  std::optional<uint32_t> set;
  std::string opaque;
};
const Struct& definition_of(const AddFd*) {
  static const Struct kStruct(
      {field("fdset-id", &AddFd::set, "which set; without it a new one"),
       with_default("opaque", &AddFd::opaque, "a text that query-fdsets gives back")});
  return kStruct;
}
const Struct& added_fd() {
  static const Struct kStruct({result_field<int64_t>("fdset-id", "the set"),
                               result_field<int64_t>("fd", "its number here")});
  return kStruct;
}
Task<Json> add_fd(Call& call, AddFd args) {
  std::optional<Descriptor> fd = call.descriptors.take_unnamed();
  if (!fd) co_return invalid("No file descriptor supplied via SCM_RIGHTS");
  const DescriptorSets::Added added = co_await call.daemon().descriptor_sets().add(
      *std::move(fd), args.set, std::move(args.opaque));
  co_return Json{{"fdset-id", added.set}, {"fd", added.number}};
}
const Command<AddFd> kAddFd({.name = "add-fd",
                             .help = "puts the descriptor that came along into a set; files can be "
                                     "opened from it as /dev/fdset/N",
                             .result = &added_fd(),
                             .run = add_fd});

struct RemoveFd {
  uint32_t set = 0;
  std::optional<int64_t> fd;
};
const Struct& definition_of(const RemoveFd*) {
  static const Struct kStruct({field("fdset-id", &RemoveFd::set, "which set"),
                               field("fd", &RemoveFd::fd, "which of it; without it all")});
  return kStruct;
}
Task<Json> remove_fd(Call& call, RemoveFd args) {
  std::optional<int> number;
  if (args.fd) number = static_cast<int>(*args.fd);
  co_await call.daemon().descriptor_sets().remove(args.set, number);
  co_return Json();
}
const Command<RemoveFd> kRemoveFd({.name = "remove-fd",
                                   .help = "takes a descriptor out of a set",
                                   .run = remove_fd});

Task<Json> query_fdsets(Call& call, Nothing) {
  co_return call.daemon().descriptor_sets().describe();
}
const Command<> kQueryFdSets({.name = "query-fdsets",
                              .help = "the sets and what is in them",
                              .result = &type_of<std::vector<Json>>(),
                              .run = query_fdsets});

}  // namespace

void add_descriptor_commands(CommandSet& set) {
  set.add(kGetFd);
  set.add(kCloseFd);
  set.add(kAddFd);
  set.add(kRemoveFd);
  set.add(kQueryFdSets);
}

}  // namespace byre::qmp
