// SPDX-License-Identifier: Apache-2.0
#include "block/reopen.h"

#include <algorithm>
#include <memory>
#include <span>
#include <vector>

#include "block/drain.h"

namespace byre {

namespace {

/// What is to change.
struct Plan {
  Reopened devices;
  bool writable = false;
  const MayReopen& may;

  Result<void> add(Device& device, bool is_asked_for) {
    const bool known =
        std::ranges::any_of(devices, [&](const Child& there) { return there.get() == &device; });
    if (known || device.writable() == writable) return {};
    if (!is_asked_for && may && device.node()) {
      Result<void> allowed = may(*device.node());
      if (!allowed) return writable ? std::move(allowed) : Result<void>();
    }
    for (const Child* edge : device.children()) {
      const bool stores = edge->role() == Role::filtered || edge->role() == Role::file ||
                          edge->role() == Role::data;
      if (!stores) continue;
      // Who asks for a disk does not know of a filter that has no name.
      const bool passes_on =
          edge->role() == Role::filtered && device.node() && device.node()->name().starts_with('#');
      if (Result<void> added = add(**edge, is_asked_for && passes_on); !added) return added;
    }
    if (dynamic_cast<Reopens*>(&device)) {
      devices.push_back(Child::to(device).hold());
      return {};
    }
    // A filter is what lies below it.
    if (std::ranges::find(device.children(), Role::filtered, &Child::role) !=
        device.children().end()) {
      return {};
    }
    return Error(Errc::read_only,
                 cat(quoted(device.name()), " cannot be reopened for ",
                     writable ? "writing" : "reading", ": open it so from the beginning"));
  }
};

Reopens& reopens(const Child& device) { return *dynamic_cast<Reopens*>(device.get()); }

/// No request runs in the device.  One that is to be read only still commits what it has staged:
/// its gate for that stays open, and who would come to write is refused.
Task<std::unique_ptr<Drain>> drain(Child& device, bool writable) {
  std::unique_ptr<Drain> drain;
  if (writable || !device->background_gate()) {
    drain = std::make_unique<Drain>(device.node());
  } else {
    const std::span<Child* const> edges = device.node().parents();
    drain = std::make_unique<Drain>(std::vector<Child*>(edges.begin(), edges.end()));
  }
  co_await drain->begin();
  co_return std::move(drain);
}

Task<void> reopen_drained(Child& device, bool writable) {
  co_await reopens(device).end_own_work();
  const std::unique_ptr<Drain> held = co_await drain(device, writable);
  co_await reopens(device).reopen(writable);
}

Task<void> change_one(Child& device, bool writable) {
  // First: who writes on would give it work of its own without end.
  if (!writable) {
    co_await device.set_permissions({.uses = Access::none(), .shares = Access::reading()});
  }
  Result<void> done = co_await reopen_drained(device, writable).result();
  (void)device.set_permissions({});
  co_await std::move(done);
}

Task<void> change(Reopened& reopened, bool writable) {
  std::vector<Child*> devices;
  for (Child& device : reopened) {
    if (device->writable() != writable) devices.push_back(&device);
  }
  if (!writable) std::ranges::reverse(devices);
  for (size_t i = 0; i < devices.size(); ++i) {
    Result<void> done = co_await change_one(*devices[i], writable).result();
    if (done) continue;
    while (i-- > 0) (void)co_await change_one(*devices[i], !writable).result();
    co_await std::move(done);
  }
}

}  // namespace

Task<Reopened> set_writable(Node& node, bool writable, MayReopen may) {
  Plan plan{.devices = {}, .writable = writable, .may = may};
  co_await plan.add(node.device(), true);
  Result<void> changed = co_await change(plan.devices, writable).result();
  if (!changed) {
    co_await keep(std::move(plan.devices));
    co_return std::move(changed).error();
  }
  co_return std::move(plan.devices);
}

Task<void> set_back(Reopened reopened, bool was_writable) {
  Result<void> changed = co_await change(reopened, was_writable).result();
  co_await keep(std::move(reopened));
  co_await std::move(changed);
}

Task<void> keep(Reopened reopened) {
  for (Child& device : reopened) {
    (void)co_await device.close().result();
    device.reset();
  }
}

}  // namespace byre
