// SPDX-License-Identifier: Apache-2.0
#include "job/live/mirror.h"

#include <algorithm>
#include <utility>

#include "base/units.h"
#include "block/gives_up.h"
#include "job/layers.h"
#include "job/live/filter_use.h"

namespace byre {
namespace {

/// Rounds that begin with less are not looked at.
constexpr uint64_t kRoundMin = 4 * MiB;
/// Of comparing before the drain: with guests that help each is half of the one before at most, but
/// for what they write during a flush.
constexpr int kCheckRoundsMax = 24;

}  // namespace

Result<std::unique_ptr<Mirror>> Mirror::make(Child source, Child target, MirrorOptions options) {
  if (&source.node() == &target.node()) return invalid("the target is the source itself");
  if (options.verify && options.copies_nothing) {
    return invalid(
        "a mirror of only what changes (sync 'none') cannot be verified: its target need "
        "not hold the rest");
  }
  if (Result<void> fits = MirrorFilter::fits(*source, *target, options.filter); !fits) {
    return std::move(fits).error();
  }
  return std::unique_ptr<Mirror>(
      new Mirror(std::move(source), std::move(target), std::move(options)));
}

Result<std::unique_ptr<Mirror>> Mirror::commit_into(Child source, uint32_t depth,
                                                    MirrorOptions options) {
  const std::vector<Device*> layers = layers_of(*source);
  if (depth == 0 || depth >= layers.size()) {
    return invalid("there are only ", layers.size() - 1, " disks below ", quoted(source->name()));
  }
  Device& base = *layers[depth];
  if (!base.writable()) {
    return Error(Errc::read_only,
                 cat(quoted(base.name()), ", the disk to commit into, is not open for writing"));
  }
  options.kind = JobKind::commit;
  options.filter.above = depth;
  options.filter.between.assign(layers.begin() + 1, layers.begin() + depth);
  std::unique_ptr<Mirror> made(new Mirror(std::move(source), Child::to(base), std::move(options)));
  for (uint32_t i = 1; i < depth; ++i) made->between_.push_back(Child::to(*layers[i]).hold());
  return made;
}

Mirror::Mirror(Child source, Child target, MirrorOptions options)
    : options_(std::move(options)), source_(std::move(source)), target_(std::move(target)) {
  options_.filter.sums = options_.verify;
  if (options_.replaces) replaced_ = Child::to(options_.replaces->device()).hold();
}

Mirror::~Mirror() = default;

std::vector<Node*> Mirror::nodes() const {
  std::vector<Node*> nodes;
  if (source_) nodes.push_back(&source_.node());
  if (target_) nodes.push_back(&target_.node());
  if (filter_) nodes.push_back(&filter().target_edge().node());
  if (replaced_) nodes.push_back(&replaced_.node());
  for (const Child& layer : between_) nodes.push_back(&layer.node());
  return nodes;
}

Result<void> Mirror::set_mode(MirrorMode mode) {
  if (mode == options_.filter.mode && !filter_) return {};
  if (mode == MirrorMode::background) {
    return invalid("Change to copy mode 'background' is not implemented");
  }
  options_.filter.mode = mode;
  if (filter_) filter().set_mode(mode);
  return {};
}

// --- The graph -----------------------------------------------------------------------------------

/// Nobody else may write to the target.  Where it lies below the source, the disk above it lets
/// that happen: it hides what is changed.
Result<void> Mirror::claim() {
  Child& target = filter().target_edge();
  const auto change = [&](Child& edge, Permissions permissions) {
    const Permissions before = edge.permissions();
    Result<void> allowed = edge.set_permissions(permissions);
    if (allowed) changed_.push_back({&edge, before});
    return allowed;
  };
  if (Child* shows = options_.filter.above != 0 ? edge_in_chain(*source_, *target) : nullptr) {
    Permissions shown = shows->permissions();
    shown.shares = Access::all();
    if (Result<void> allowed = change(*shows, shown); !allowed) return allowed;
  }
  return target.set_permissions(
      {.uses = {.read = true, .write = true, .resize = true}, .shares = Access::reading()});
}

void Mirror::give_back_permissions() {
  for (const Changed& change : std::exchange(changed_, {})) {
    (void)change.edge->set_permissions(change.before);
  }
}

Task<void> Mirror::enter_graph(Job& job) {
  filter_ = std::make_unique<MirrorFilter>(source_.another(), std::move(target_), options_.filter);
  filter_.set_gate(&job.gate());
  name_filter(filter_, options_.filter_name);
  filter().set_changed(&job.changed());
  if (options_.copies_nothing) filter().forget_dirty();
  co_await claim();
  Device& target = filter().target();
  if (target.size() < source_->size()) {  // Of a commit; else it was refused.
    const Gate::Pass pass = co_await job.enter();
    co_await target.resize(source_->size())
        .doing("make ", quoted(target.name()), " as large as ", quoted(source_->name()));
  }
  source_ = source_.hold();  // It stays where it is.
  co_await insert_above(source_.node(), filter_);
  entered_ = true;
  co_await keep_writers_out(filter());
}

Task<void> Mirror::leave_graph() {
  drain_.reset();
  if (std::exchange(entered_, false)) co_await byre::leave_graph(filter_);
  if (filter_) give_back_permissions();
}

/// All who use the source, or what is to be replaced, are to use the target.
std::vector<Move> Mirror::switch_moves() const {
  Node& from = options_.replaces ? *options_.replaces : filter_.node();
  std::vector<Move> moves;
  for (Child* edge : from.parents()) {
    if (edge == &filter_ || edge->role() == Role::name) continue;
    moves.push_back({*edge, filter().target_edge().node()});
  }
  return moves;
}

// --- Copying -------------------------------------------------------------------------------------

/// As much as is copied while guests are drained.
bool Mirror::is_nearly_in_sync() const { return filter().dirty_bytes() <= bytes_in_drain(); }

/// A round has ended.
void Mirror::look_at_round(Job& job) {
  if (is_nearly_in_sync()) job.set_ready();
  const uint64_t dirty = filter().dirty_bytes();
  const uint64_t before = std::exchange(round_began_, dirty);
  if (++rounds_ < 3 || dirty < kRoundMin) return;
  overtaken_ = dirty > before / 2;
  if (overtaken_) job.hurry();
  if (overtaken_ && options_.converge == Converge::automatic && mode() == MirrorMode::background) {
    gone_blocking_ = set_mode(MirrorMode::write_blocking).has_value();
  }
}

Task<void> Mirror::run(Job& job) {
  co_await enter_graph(job);
  copy_ = std::make_unique<MirrorCopy>(filter(), options_.requests_max,
                                       [this, &job] { look_at_round(job); });
  if (options_.verify) {
    CopyCheckOptions how{.locks = &filter().locks(),
                         .requests_max = options_.requests_max,
                         .request_size = options_.filter.request_size,
                         .guest_requests = [this] { return filter().guest_requests(); }};
    check_ = std::make_unique<CopyCheck>(*filter().sums(), filter().target(), source_->name(),
                                         std::move(how));
  }
  job.progress().set_total(filter().dirty_bytes());
  while (true) {
    // Guests that write all the time are no reason not to look at the target.
    co_await copy_->run(job, [this, &job] {
      return job.shall_complete() || (job.is_ready() && shall_check() && is_nearly_in_sync());
    });
    if (job.shall_complete()) co_return;
    job.progress().set(job.progress().total(), job.progress().total());
    job.set_ready();
    if (job.is_cancelled()) co_await fail(job.cancelled_error());
    if (job.shall_complete()) continue;
    if (shall_check()) {
      co_await check(job);
    } else if (!filter().is_dirty()) {
      co_await job.changed().wait();
    }
  }
}

// --- Comparing -----------------------------------------------------------------------------------

/// Little is left for the end.
bool Mirror::shall_check() const {
  return check_ && filter().sums()->unchecked_bytes() > (checked_ ? bytes_in_drain() : 0);
}

Task<void> Mirror::check(Job& job) {
  co_await check_->run(job, [&job] { return job.shall_complete(); });
  checked_ |= !job.shall_complete();
}

/// What is dirty and what is not compared is little afterwards.  Guests go on.
Task<void> Mirror::check_before_drain(Job& job) {
  filter().let_guests_help(check_.get());
  for (int rounds = 0; rounds < kCheckRoundsMax; ++rounds) {
    co_await copy_->run(job, [this] { return is_nearly_in_sync(); });
    if (filter().sums()->unchecked_bytes() <= bytes_in_drain()) break;
    co_await check_->run(job);
  }
}

std::optional<uint64_t> Mirror::verified() const {
  if (!options_.verify) return std::nullopt;
  return filter_ ? filter().sums()->checked_bytes() : verified_;
}

Task<void> Mirror::prepare(Job& job) {
  filter().set_mode(MirrorMode::write_blocking);
  co_await copy_->run(job, [this] { return is_nearly_in_sync(); });
  if (check_) co_await check_before_drain(job);
  drain_ = std::make_unique<Drain>(filter_.node());
  co_await drain_->begin();
  co_await copy_->run_alone();
  co_await filter().target().flush();
  if (check_) co_await check_->run_alone();
  if (!switches(job)) co_return;
  moves_ = switch_moves();
  const bool held =
      std::ranges::all_of(moves_, [&](const Move& move) { return drain_->holds(move.edge); });
  if (!held) {
    co_await fail(invalid("Node '", options_.replaces->name(),
                          "' cannot be replaced: it does not lie above the source"));
  }
  co_await filter().target_edge().set_permissions({});  // Others write from here on.
  co_await check_moves(moves_);
}

Task<void> Mirror::commit(Job& job) {
  if (switches(job)) {
    if (source_->writable()) loans.keep(filter().target_edge().node());
    repoint(*drain_, moves_);
    entered_ = false;
  }
  co_await leave_graph();
}

Task<void> Mirror::abort(Job&) { co_await leave_graph(); }

/// The base of a commit is read by guests: it is never given up.
void Mirror::interrupt() {
  if (kind() == JobKind::mirror && filter_) give_up_requests(filter().target());
}

Task<void> Mirror::clean(Job&) {
  changed_.clear();
  if (filter_) filter().let_guests_help(nullptr);
  verified_ = verified().value_or(0);
  if (filter_) (void)co_await filter_.close().result();
  if (target_) (void)co_await target_.close().result();
  if (source_) (void)co_await source_.close().result();
  if (replaced_) (void)co_await replaced_.close().result();
  co_await close_all(std::exchange(between_, {}));
  replaced_ = {};
  filter_ = {};
  target_ = {};
  source_ = {};
}

}  // namespace byre
