// SPDX-License-Identifier: Apache-2.0
/// Opening, closing and reopening the disk of an IoShell.
#include <cerrno>
#include <cstring>

#include "block/copy_on_read.h"
#include "cli/io_shell.h"
#include "cli/options.h"

namespace byre {

namespace {

/// Why `name` could not be opened, in the words that scripts know.
std::string why_not_opened(const std::string& name, const Error& error, bool can_share) {
  std::string why = error.message();
  const std::string own = cat("open ", byre::quoted(name), ": ");
  while (why.starts_with(own)) why.erase(0, own.size());
  // QEMU's own words stand by themselves, whatever the file is called.
  const size_t theirs = why.find("Lazy refcounts require ");
  if (theirs != std::string::npos) why.erase(0, theirs);
  if (why == std::strerror(error.sys_errno())) return cat("Could not open '", name, "': ", why);
  why += advice_on_follow(error);
  if (can_share) why += advice_on_lock(error);
  return why;
}

Result<DeviceTree> tree_of(const IoOpen& open) {
  if (!open.blockdevs.empty()) return parse_device_list(open.blockdevs, open.path);
  if (open.image_opts) return parse_image_opts(open.path);
  return parse_device_name(open.path, open.format, open.options);
}

bool has_cache_option(const OptionTree& options) {
  const OptionTree* const cache = options.find("cache");
  return cache && (cache->find("direct") || cache->find("no-flush"));
}

}  // namespace

void IoShell::watch(FaultFilter& filter) {
  filter.on_hold = [this](const std::string& tag, bool held) {
    say(cat("blkdebug: ", held ? "Suspended" : "Resuming", " request '", tag, "'\n"));
  };
  filters_.push_back(&filter);
}

/// Opens tree_ as `open` says; after an error nothing is open.
Task<void> IoShell::mount(IoOpen open) {
  const bool writable = !open.read_only;
  if (open.share_lock && writable && !open.temporary) {
    co_await fail(invalid("force-share=on can only be used with read-only images"));
  }
  filters_.clear();
  OpenTreeOptions options{.image = {.writable = writable && !open.temporary,
                                    .direct = is_direct(open.cache),
                                    .share_lock = open.share_lock,
                                    .discard = open.discard},
                          .growable = true,  // check_range() keeps requests within the disk.
                          .reactor = &reactor_,
                          .objects = options_.objects};
  options.image.message = [this](const std::string& text) {
    complain(cat(options_.program, ": warning: ", text, "\n"));
  };
  options.on_guessed_raw = [&] { options_.guessed_raw(open.path); };
  options.on_fault_filter = [&](FaultFilter& filter) { watch(filter); };
  Result<Disk> opened = co_await open_tree(opener_, tree_, std::move(options)).result();
  if (!opened) {
    Error error = std::move(opened).error();
    co_await fail(Error(error.code(), why_not_opened(open.path, error, open.read_only)));
  }
  Disk disk = *std::move(opened);
  if (overlay_) {
    const DiscardPolicy discard = overlay_tree_->discard.value_or(open.discard);
    co_await overlay_->put_over(disk, opener_, {.writable = writable, .discard = discard});
  }
  if (open.copy_on_read) {
    if (!disk.device->writable()) {
      co_await disk.device.close();
      disk.device.reset();
      co_await fail(invalid("Can't use copy-on-read on read-only device"));
    }
    disk.device = co_await CopyOnRead::make(std::move(disk.device));
  }
  device_ = std::move(disk.device);
  image_ = disk.image;
  write_through_ = is_write_through(open.cache);
  how_ = std::move(open);
}

Task<bool> IoShell::open(IoOpen open) {
  const bool named = !open.image_opts && !open.path.empty();
  const std::string prefix =
      cat(options_.program, ": can't open", named ? cat(" device ", open.path) : "", ": ");
  const auto refuse = [&](const std::string& why, Errc code) {
    complain(cat(prefix, why, "\n"));
    failed_ = true;
    open_failure_ = code;
    return false;
  };
  if (open.share_lock && !open.read_only && !open.temporary) {
    co_return refuse("force-share=on can only be used with read-only images", Errc::invalid);
  }
  Result<DeviceTree> tree = tree_of(open);
  if (!tree) co_return refuse(tree.error().message(), tree.error().code());
  tree_ = *std::move(tree);
  overlay_.reset();
  if (open.temporary) {
    Result<TemporaryOverlay> overlay = TemporaryOverlay::make(options_.temporary_folder);
    if (!overlay) co_return refuse(overlay.error().message(), overlay.error().code());
    overlay_ = *std::move(overlay);
    // Its file has no name; reopen cannot change which it is.
    overlay_tree_ = *parse_image_opts("driver=qcow2,file.driver=file,file.filename=temporary");
  }
  const bool wants_direct = open.native_aio;
  const Result<void> mounted = co_await mount(std::move(open)).result();
  if (!mounted) co_return refuse(mounted.error().message(), mounted.error().code());
  if (wants_direct && !tree_->direct.value_or(is_direct(how_.cache))) {
    co_await close();
    co_return refuse(
        "aio=native was specified, but it requires cache.direct=on, which was not specified.",
        Errc::invalid);
  }
  co_return true;
}

Task<void> IoShell::perform(IoOpen command) {
  if (device_) {
    complain(cat(options_.program, ": file open already, try 'help close'\n"));
    failed_ = true;
    co_return;
  }
  co_await open(std::move(command));
}

void IoShell::use(Child device, Image* image) {
  device_ = std::move(device);
  image_ = image;
}

// Closing.

/// What is held goes on, and what runs ends.
Task<void> IoShell::stop_requests() {
  for (FaultFilter* filter : filters_) filter->release_all();
  co_await background_.join();
}

/// Nothing is open afterwards, also where that failed.
Task<void> IoShell::close_device() {
  Result<void> closed = co_await device_.close().result();
  if (!closed) device_.abandon();
  device_.reset();
  image_ = nullptr;
  filters_.clear();
  co_await std::move(closed);
}

Task<void> IoShell::close() {
  if (!device_) co_return;
  co_await stop_requests();
  const Result<void> closed = co_await close_device().result();
  overlay_.reset();
  if (!closed) {
    complain(cat(options_.program, ": close: ", closed.error().message(), "\n"));
    failed_ = true;
  }
}

Task<void> IoShell::perform(IoClose) { co_await close(); }

Task<void> IoShell::finish() { co_await close(); }

// Reopening.

/// The disk as `next` and tree_ say, with what its fault filters remember; or as it was, without
/// the change.
Task<void> IoShell::mount_again(IoOpen next, TreeChange& change) {
  std::vector<FaultFilter::Memory> memories;
  for (const FaultFilter* filter : filters_) memories.push_back(filter->memory());
  co_await stop_requests();
  for (size_t i = 0; i < filters_.size(); ++i) {
    // Requests that ended just now may have spent rules.
    FaultFilter::Memory now = filters_[i]->memory();
    now.breaks = std::move(memories[i].breaks);
    memories[i] = std::move(now);
  }
  const IoOpen before = how_;
  Result<void> mounted = co_await close_device().result();
  if (mounted) mounted = co_await mount(std::move(next)).result();
  if (!mounted) {
    change.undo();
    const Result<void> back = co_await mount(before).result();
    if (!back) {
      co_await fail(Error(mounted.error().code(),
                          cat(mounted.error().message(), "; the file is closed now, because it ",
                              "could not be opened as it was: ", back.error().message())));
    }
  }
  for (size_t i = 0; i < filters_.size(); ++i) filters_[i]->recall(std::move(memories[i]));
  co_await std::move(mounted);
}

Task<void> IoShell::reopen(IoReopen wanted) {
  if (!tree_) {
    co_await fail(unsupported("The node was opened elsewhere: blockdev-reopen changes it"));
  }
  IoOpen next = how_;
  OptionTree options;
  if (!wanted.options.empty()) options = co_await parse_option_list(wanted.options);
  if (wanted.writable && options.find("read-only")) {
    co_await fail(invalid("Cannot set both -r/-w and 'read-only'"));
  }
  if (wanted.cache && has_cache_option(options)) {
    co_await fail(invalid("Cannot set both -c and the cache options"));
  }
  const std::string node = device_.node().name();
  if (next.copy_on_read && wanted.writable == false) {
    co_await fail(invalid("Can't set node '", node, "' to r/o with copy-on-read enabled"));
  }

  // What lies below an overlay is only read, and stays as it is.
  DeviceNode& top = overlay_ ? *overlay_tree_ : *tree_;
  TreeChange change = co_await TreeChange::make(overlay_ ? overlay_tree_ : tree_, options);
  if (wanted.writable) {
    next.read_only = !*wanted.writable;
    if (*wanted.writable) top.read_only.reset();
  } else if (options.find("read-only") && top.read_only == false) {
    next.read_only = false;
  }
  if (wanted.cache) {
    next.cache = *wanted.cache;
    top.direct.reset();
  }
  Result<void> reopened;
  if (top.read_only == true && !next.read_only) {
    reopened = invalid("Read-only block node '", node, "' cannot support read-write users");
  } else {
    reopened = co_await mount_again(std::move(next), change).result();
  }
  if (!reopened) change.undo();
  co_await std::move(reopened);
}

Task<void> IoShell::perform(IoReopen command) {
  const Result<void> reopened = co_await reopen(std::move(command)).result();
  if (reopened) co_return;
  complain(cat(options_.program, ": ", reopened.error().message(), "\n"));
  failed_ = true;
}

}  // namespace byre
