// SPDX-License-Identifier: Apache-2.0
#include "job/live/commit_below.h"

#include <algorithm>
#include <utility>

#include "job/layers.h"
#include "job/live/filter_use.h"

namespace byre {

Result<std::unique_ptr<CommitBelow>> CommitBelow::make(Child overlay, CommitBelowOptions options) {
  auto* image = dynamic_cast<Image*>(overlay.get());
  if (!image || !image->writable()) {
    return invalid(quoted(overlay->name()), " is no qcow2 image that is open for writing");
  }
  std::vector<Device*> layers = layers_of(*overlay);
  layers.erase(layers.begin());
  if (options.depth == 0 || options.depth >= layers.size()) {
    return invalid("there is no disk ", options.depth, " layers below the top of the commit");
  }
  layers.resize(options.depth + 1);
  const Device& base = *layers.back();
  if (!base.writable()) {
    return Error(Errc::read_only,
                 cat(quoted(base.name()), ", the disk to commit into, is not open for writing"));
  }
  options.filter.above = options.depth;
  options.filter.between.assign(layers.begin() + 1, layers.end() - 1);
  return std::unique_ptr<CommitBelow>(
      new CommitBelow(std::move(overlay), std::move(layers), std::move(options)));
}

CommitBelow::CommitBelow(Child overlay, std::vector<Device*> layers, CommitBelowOptions options)
    : options_(std::move(options)),
      layers_(std::move(layers)),
      overlay_(overlay.hold()),
      base_(Child::to(*layers_.back()).hold()) {
  for (Device* layer : layers_) held_.push_back(Child::to(*layer).hold());
}

std::vector<Node*> CommitBelow::nodes() const {
  std::vector<Node*> nodes;
  if (!overlay_) return nodes;
  nodes.push_back(&overlay_.node());
  for (const Device* layer : layers_) nodes.push_back(layer->node());
  return nodes;
}

Task<void> CommitBelow::run(Job& job) {
  Device& top = *layers_.front();
  Device& base = *layers_.back();
  filter_ = std::make_unique<MirrorFilter>(Child::to(top), Child::to(base), options_.filter);
  filter_.set_gate(&job.gate());
  name_filter(filter_, options_.filter_name);
  // The disk above the base hides what is changed in it.
  shows_ = edge_in_chain(*overlay_, base);
  showed_ = shows_->permissions();
  Permissions shown = showed_;
  shown.shares = Access::all();
  co_await shows_->set_permissions(shown);
  co_await filter().target_edge().set_permissions(
      {.uses = {.read = true, .write = true, .resize = true}, .shares = Access::reading()});
  if (base.size() < top.size()) {
    const Gate::Pass pass = co_await job.enter();
    co_await base.resize(top.size())
        .doing("make ", quoted(base.name()), " as large as ", quoted(top.name()));
  }
  job.progress().set_total(filter().dirty_bytes());
  MirrorCopy copy(filter(), options_.requests_max);
  copy.set_guest_requests(options_.guest_requests);
  co_await copy.run(job);
  co_await hide_what_is_longer(job);
  job.progress().set(job.progress().total(), job.progress().total());
}

/// Behind the end of the top the image above reads zeros, whatever the base has there.
Task<void> CommitBelow::hide_what_is_longer(Job& job) {
  const uint64_t top_end = layers_.front()->size();
  const uint64_t end = std::min(overlay_->size(), filter().target().size());
  if (top_end >= end) co_return;
  const Gate::Pass pass = co_await job.enter();
  co_await filter().target().zero(top_end, end - top_end, {.may_unmap = true});
}

Task<void> CommitBelow::prepare(Job&) {
  co_await filter().target().flush();
  give_back_permissions();
  Child next = base_.another();
  co_await static_cast<Image&>(*overlay_).replace_backing(next, options_.base_name);
  if (next) (void)co_await next.close().result();  // What lay below until now.
}

void CommitBelow::give_back_permissions() {
  if (filter_) (void)filter().target_edge().set_permissions({});
  if (shows_) (void)std::exchange(shows_, nullptr)->set_permissions(showed_);
}

Task<void> CommitBelow::abort(Job&) {
  give_back_permissions();
  co_return;
}

Task<void> CommitBelow::clean(Job&) {
  for (Child* edge : {&filter_, &base_, &overlay_}) {
    if (!*edge) continue;
    (void)co_await edge->close().result();
    edge->reset();
  }
  co_await close_all(std::exchange(held_, {}));
}

}  // namespace byre
