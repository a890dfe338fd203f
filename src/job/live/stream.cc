// SPDX-License-Identifier: Apache-2.0
#include "job/live/stream.h"

#include <algorithm>
#include <utility>

#include "coro/scope.h"
#include "job/layers.h"
#include "job/live/filter_use.h"

namespace byre {

Result<std::unique_ptr<Stream>> Stream::make(Child image, StreamOptions options) {
  if (!dynamic_cast<Image*>(image.get())) {
    return unsupported(quoted(image->name()),
                       " is no qcow2 image: only those can be streamed into");
  }
  if (!image->writable()) {
    return Error(Errc::read_only, cat(quoted(image->name()),
                                      " is not open for writing: nothing can be streamed into it"));
  }
  const std::vector<Device*> layers = layers_of(*image);
  const uint64_t below = layers.size() - 1;
  const uint64_t depth = options.depth.value_or(static_cast<uint32_t>(below));
  if (options.depth && depth >= below) {
    return invalid("the base must lie below ", quoted(image->name()));
  }
  if (options.depth && !options.base_name) return invalid("the base needs a name for the header");
  const auto first = layers.begin() + 1;
  std::vector<Device*> between(first, first + static_cast<std::ptrdiff_t>(depth));
  Device* base = options.depth ? layers[depth + 1] : nullptr;
  return std::unique_ptr<Stream>(new Stream(std::move(image), std::move(options), between, base));
}

Stream::Stream(Child image, StreamOptions options, const std::vector<Device*>& between,
               Device* base)
    : options_(std::move(options)),
      image_(std::move(image)),
      base_(base ? Child::to(*base) : Child()) {
  for (Device* layer : between) between_.push_back(Child::to(*layer).hold());
}

std::vector<Node*> Stream::nodes() const {
  std::vector<Node*> nodes;
  if (!image_) return nodes;
  nodes.push_back(&image_.node());
  for (const Child& layer : between_) nodes.push_back(&layer.node());
  return nodes;
}

Task<void> Stream::run(Job& job) {
  const auto bottom = static_cast<uint32_t>(between_.size());
  image_ = image_.hold();  // It stays where it is.
  if (base_) base_ = base_.hold();
  filter_ = co_await CopyOnRead::make(image_.another(), bottom);
  filter_.set_gate(&job.gate());
  name_filter(filter_, options_.filter_name);
  co_await insert_above(image_.node(), filter_);
  entered_ = true;
  co_await keep_writers_out(filter());
  job.progress().set_total(image_->size());
  Scope workers(job.reactor().ready());
  for (unsigned i = 0; i < options_.requests_max; ++i) workers.spawn(worker(job));
  co_await workers.join();
}

Task<void> Stream::worker(Job& job) {
  const uint64_t step =
      round_up(std::max<uint64_t>(options_.request_size, 1), filter().cluster_size());
  while (!failed_ && next_ < image_->size()) {
    const uint64_t at = next_;
    const uint64_t length = std::min(step, image_->size() - at);
    next_ += length;
    while (true) {
      Result<void> done;
      const uint64_t before = filter().bytes_copied();
      Instant began;
      {
        const Gate::Pass pass = co_await job.enter();
        began = job.reactor().now();
        done = co_await fill(at, length).result();
      }
      if (done) {
        co_await job.limit(std::min(filter().bytes_copied() - before, length));
        if (filter().bytes_copied() != before) {
          co_await job.give_way(began, filter().guest_requests());
        }
        break;
      }
      if (co_await job.retries(JobSide::source, done.error())) continue;
      failed_ = true;
      co_await fail(job.is_cancelled() ? job.cancelled_error() : std::move(done).error());
    }
    job.progress().advance(length);
  }
}

Task<void> Stream::fill(uint64_t at, uint64_t length) {
  const uint64_t end = at + length;
  // Behind the end of a disk between nothing of the base shows.
  uint64_t hidden = end;
  for (const Child& layer : between_) hidden = std::min(hidden, std::max(at, layer->size()));
  co_await filter().fill(at, length);
  if (base_ && hidden < end && base_->size() > hidden) {
    co_await filter().fill_with_zeros(hidden, end - hidden);
  }
}

Task<void> Stream::prepare(Job&) {
  co_await image().flush();
  if (between_.empty()) co_return;  // It lies there already.
  Child next = base_ ? base_.another() : Child();
  co_await image().replace_backing(next, options_.base_name);
  if (next) (void)co_await next.close().result();  // What lay below until now.
}

Task<void> Stream::leave_graph() {
  if (std::exchange(entered_, false)) co_await byre::leave_graph(filter_);
}

Task<void> Stream::commit(Job&) { co_await leave_graph(); }
Task<void> Stream::abort(Job&) { co_await leave_graph(); }

Task<void> Stream::clean(Job&) {
  for (Child* edge : {&filter_, &base_, &image_}) {
    if (!*edge) continue;
    (void)co_await edge->close().result();
    edge->reset();
  }
  co_await close_all(std::exchange(between_, {}));
}

}  // namespace byre
