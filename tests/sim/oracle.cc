// SPDX-License-Identifier: Apache-2.0
#include "oracle.h"

#include <algorithm>
#include <array>

#include "base/prng.h"

namespace byre {

namespace {

constexpr uint64_t kMark = 0x62797265'53494d21;  // "byreSIM!"

struct Stamp {
  be64 mark;
  be64 sector;
  be64 token;
  be64 checksum;
};
static_assert(sizeof(Stamp) == 32);

uint64_t checksum(uint64_t sector, Token token) { return Prng(sector * 0x10001 + token).next(); }

/// Bytes of a sector that compress to next to nothing; the rest is noise.
size_t dull_size(Token token) {
  return token % 4 == 3 ? sizeof(Stamp) : token % 4 == 2 ? kSectorSize / 2 : kSectorSize;
}

std::string name_of_token(Token token) {
  return token == 0 ? std::string("zeros") : cat("write ", token);
}

}  // namespace

void fill_sector(MutableBytes bytes, uint64_t sector, Token token) {
  BYRE_ASSERT(bytes.size() == kSectorSize);
  if (token == 0) return fill_zero(bytes);
  const Stamp stamp{kMark, sector, token, checksum(sector, token)};
  copy(bytes, bytes_of(stamp));
  size_t at = sizeof stamp;
  for (; at < dull_size(token); at += sizeof stamp) {
    copy(bytes.subspan(at, sizeof stamp), bytes_of(stamp));
  }
  Prng prng(stamp.checksum);
  for (; at < kSectorSize; at += 8) store_be(bytes, at, prng.next());
}

void fill_sectors(MutableBytes bytes, uint64_t offset, Token token) {
  for (uint64_t at = 0; at < bytes.size(); at += kSectorSize) {
    fill_sector(bytes.subspan(at, kSectorSize), (offset + at) / kSectorSize, token);
  }
}

bool is_stamped(Bytes bytes) { return load_be<uint64_t>(bytes) == kMark; }

Result<Token> recognise(Bytes bytes, uint64_t sector) {
  if (is_zero(bytes)) return Token{0};
  const Stamp& stamp = *view_as<Stamp>(bytes);
  if (stamp.mark != kMark || stamp.checksum != checksum(stamp.sector, stamp.token)) {
    return corrupt("no guest data: ", hex(load_be<uint64_t>(bytes)), " ",
                   hex(load_be<uint64_t>(bytes, 8)), " ...");
  }
  std::array<std::byte, kSectorSize> whole;
  fill_sector(whole, stamp.sector, stamp.token);
  if (!equal(bytes, whole))
    return corrupt("a mixture that starts as write ", uint64_t{stamp.token});
  if (stamp.sector != sector) {
    return corrupt("guest sector ", hex(stamp.sector), " of write ", uint64_t{stamp.token});
  }
  return Token{stamp.token};
}

const Oracle::Cell& Oracle::cell(uint64_t sector) const {
  static const Cell kEmpty = {{.token = 0, .certain = true, .durable = true}};
  const auto found = cells_.find(sector);
  return found == cells_.end() ? kEmpty : found->second;
}

bool Oracle::readable(const Cell& cell, const Candidate& v, uint64_t read) const {
  return std::none_of(cell.begin(), cell.end(), [&](const Candidate& w) {
    return w.certain && w.issued > v.answered && w.answered < read;
  });
}

bool Oracle::survives_cut(const Cell& cell, const Candidate& v) const {
  return std::none_of(cell.begin(), cell.end(),
                      [&](const Candidate& w) { return w.issued > v.answered && durable(w); });
}

bool Oracle::survives_kill(const Cell& cell, const Candidate& v) const {
  return survives_cut(cell, v) && std::none_of(cell.begin(), cell.end(), [&](const Candidate& w) {
           return w.issued > v.answered && w.certain && w.answered_ns < settled_ns_;
         });
}

void Oracle::prune(Cell& cell) const {
  if (cell.size() < 4) return;
  const uint64_t oldest_read = reads_.empty() ? clock_ : *reads_.begin();
  const Cell all = cell;
  std::erase_if(cell, [&](const Candidate& v) {
    return std::any_of(all.begin(), all.end(), [&](const Candidate& w) {
      return durable(w) && w.issued > v.answered && w.answered < oldest_read;
    });
  });
}

uint64_t Oracle::begin_change(uint64_t offset, uint64_t length, Token token, bool certain) {
  BYRE_ASSERT(offset % kSectorSize == 0 && length % kSectorSize == 0);
  const uint64_t change = ++clock_;
  const Change made{offset / kSectorSize, length / kSectorSize, certain};
  changes_.emplace(change, made);
  for (uint64_t s = made.first; s < made.first + made.count; ++s) {
    Cell& here = cells_.try_emplace(s, cell(s)).first->second;
    prune(here);
    here.push_back({.token = token, .issued = change, .answered = kNever, .change = change});
    touched_.insert(s);
  }
  return change;
}

void Oracle::cancel_change(uint64_t change) {
  const auto found = changes_.find(change);
  BYRE_ASSERT(found != changes_.end());
  const Change made = found->second;
  changes_.erase(found);
  for (uint64_t s = made.first; s < made.first + made.count; ++s) {
    std::erase_if(cells_.at(s), [&](const Candidate& v) { return v.change == change; });
  }
}

Oracle::Contents Oracle::contents_since(uint64_t began, uint64_t offset, uint64_t length) const {
  Contents contents(length / kSectorSize);
  for (uint64_t i = 0; i < contents.size(); ++i) {
    const Cell& here = cell(offset / kSectorSize + i);
    for (const Candidate& v : here) {
      if (readable(here, v, began)) contents[i].push_back(v.token);
    }
  }
  return contents;
}

uint64_t Oracle::begin_restore(uint64_t offset, const Contents& contents) {
  const uint64_t change = ++clock_;
  const Change made{offset / kSectorSize, contents.size(), true};
  changes_.emplace(change, made);
  for (uint64_t i = 0; i < made.count; ++i) {
    const uint64_t s = made.first + i;
    Cell& here = cells_.try_emplace(s, cell(s)).first->second;
    prune(here);
    for (const Token token : contents[i]) {
      here.push_back({.token = token, .issued = change, .answered = kNever, .change = change});
    }
    touched_.insert(s);
  }
  return change;
}

Result<void> Oracle::check_copy(uint64_t offset, Bytes data, const Contents& contents) {
  for (uint64_t i = 0; i < contents.size(); ++i) {
    const uint64_t sector = offset / kSectorSize + i;
    const Result<Token> token = recognise(data.subspan(i * kSectorSize, kSectorSize), sector);
    if (!token) return corrupt("guest sector ", hex(sector), " holds ", token.error().message());
    if (std::find(contents[i].begin(), contents[i].end(), *token) != contents[i].end()) continue;
    std::string allowed;
    for (const Token other : contents[i]) allowed += cat(" ", name_of_token(other));
    return corrupt("guest sector ", hex(sector), " holds ", name_of_token(*token),
                   "; allowed:", allowed);
  }
  return {};
}

void Oracle::end_change(uint64_t change, bool succeeded, bool durable) {
  const Change made = changes_.at(change);
  changes_.erase(change);
  if (succeeded) {
    answer(change, made, made.certain, durable);
  } else {
    failed_.push_back({change, ++clock_, made});
  }
}

void Oracle::answer(uint64_t change, const Change& made, bool certain, bool durable) {
  const uint64_t now = ++clock_;
  for (uint64_t s = made.first; s < made.first + made.count; ++s) {
    for (Candidate& candidate : cells_.at(s)) {
      if (candidate.change != change) continue;
      candidate.answered = now;
      candidate.certain = certain;
      candidate.durable = durable;
      candidate.answered_ns = now_ns_;
    }
  }
}

void Oracle::end_flush(uint64_t flush) {
  flushed_before_ = std::max(flushed_before_, flush);
  std::erase_if(failed_, [&](const Failed& failed) {
    if (failed.failed_at >= flush) return false;
    answer(failed.change, failed.made, false, false);
    return true;
  });
}

uint64_t Oracle::begin_read() {
  const uint64_t read = ++clock_;
  reads_.insert(read);
  return read;
}

void Oracle::end_read(uint64_t read) { reads_.erase(reads_.find(read)); }

Result<void> Oracle::end_read(uint64_t read, uint64_t offset, Bytes data) {
  Result<void> result = check(
      offset, data, [&](const Cell& cell, const Candidate& v) { return readable(cell, v, read); },
      "a read");
  end_read(read);
  return result;
}

template <class Allowed>
Result<void> Oracle::check(uint64_t offset, Bytes data, const Allowed& allowed,
                           std::string_view when) const {
  for (uint64_t at = 0; at < data.size(); at += kSectorSize) {
    const uint64_t sector = (offset + at) / kSectorSize;
    const Cell& here = cell(sector);
    const auto may = [&](const Candidate& v) { return allowed(here, v); };
    const Result<Token> token = recognise(data.subspan(at, kSectorSize), sector);
    if (!token) {
      return corrupt(when, ": guest sector ", hex(sector), " holds ", token.error().message(),
                     "; allowed:", describe(here, may));
    }
    const bool found = std::any_of(here.begin(), here.end(),
                                   [&](const Candidate& v) { return v.token == *token && may(v); });
    if (!found) {
      return corrupt(when, ": guest sector ", hex(sector), " holds ", name_of_token(*token),
                     "; allowed:", describe(here, may));
    }
  }
  return {};
}

std::string Oracle::describe(const Cell& cell,
                             const std::function<bool(const Candidate&)>& allowed) const {
  std::string text;
  for (const Candidate& v : cell) {
    if (!allowed(v)) continue;
    text +=
        cat(" ", name_of_token(v.token), v.answered == kNever ? " (under way)" : "",
            durable(v) ? " (durable)" : "", v.certain || v.answered == kNever ? "" : " (maybe)");
  }
  return text;
}

Result<void> Oracle::check_after_cut(uint64_t offset, Bytes data,
                                     const std::set<uint64_t>& not_yet) const {
  return check(
      offset, data,
      [&](const Cell& cell, const Candidate& v) {
        return survives_cut(cell, v) && !not_yet.contains(v.change);
      },
      "after a cut");
}

void Oracle::process_died() {
  for (const auto& [change, made] : changes_) answer(change, made, false, false);
  for (const Failed& failed : failed_) answer(failed.change, failed.made, false, false);
  changes_.clear();
  failed_.clear();
  reads_.clear();
}

Result<void> Oracle::observe(uint64_t offset, Bytes data, bool durable) {
  Result<void> result =
      durable ? check_after_cut(offset, data)
              : check(
                    offset, data,
                    [&](const Cell& cell, const Candidate& v) { return survives_kill(cell, v); },
                    "after the process was killed");
  if (!result) return result;
  const uint64_t now = ++clock_;
  for (uint64_t at = 0; at < data.size(); at += kSectorSize) {
    const uint64_t sector = (offset + at) / kSectorSize;
    const auto found = cells_.find(sector);
    if (found == cells_.end()) continue;
    const Result<Token> token = recognise(data.subspan(at, kSectorSize), sector);
    if (durable) found->second.clear();
    found->second.push_back({.token = *token,
                             .issued = now,
                             .answered = now,
                             .certain = true,
                             .durable = durable,
                             .change = 0,
                             .answered_ns = now_ns_});
  }
  return {};
}

}  // namespace byre
