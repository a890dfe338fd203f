// SPDX-License-Identifier: Apache-2.0
/// byre-sim: plays simulated histories and says what broke.
///
///     byre-sim --list
///     byre-sim [--scenario NAME]... --seed N [--trace] [--shrink] [--dump DIR]
///     byre-sim [--scenario NAME]... --seeds A..B [--keep-going]
///     byre-sim --smoke                     the test run: few seeds of each, each twice
///     --hashes: print the hash of each seed's trace.  A change that only moves code keeps them
///     all;
///               write them to a file before it, and compare after it.
///     --judge DIR: also qemu-img check, and the reference checker, on what each incarnation leaves
///
/// A failure prints its scenario and seed; the same two repeat it exactly.  Seeds are played in
/// child processes, so that an assertion of the engine is reported with its seed like any failure.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "scenarios.h"

namespace byre {
namespace {

struct Arguments {
  std::vector<const Scenario*> scenarios;
  uint64_t first = 0;
  uint64_t end = 0;
  bool smoke = false;
  bool trace = false;
  bool shrink = false;
  bool keep_going = false;
  bool hashes = false;
  std::string dump;
  std::string judge;
};

/// What parent and children share.
struct Shared {
  uint64_t seed;
  uint64_t histories_begun;  ///< Of this seed.
  uint64_t histories;
  uint64_t requests;
  uint64_t request_errors;
  uint64_t deliveries;
  uint64_t cuts;
  uint64_t failures;
};

Shared* shared() {
  static auto* const memory = static_cast<Shared*>(
      mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  return memory;
}

void dump(const SimDisks& disks, const std::string& folder) {
  std::filesystem::create_directories(folder);
  for (const auto& [name, disk] : disks) {
    const std::string path = folder + "/" + name;
    const Result<void> written = disk.dump(path);
    std::printf("  %s: %s\n", written ? "dumped" : "not dumped", path.c_str());
  }
}

/// Asks the real qemu-img and the reference checker.
std::string judge(const SimDisks& disks, const std::string& folder) {
  std::filesystem::create_directories(folder);
  for (const auto& [name, disk] : disks) {
    if (!disk.dump(folder + "/" + name)) return "cannot dump";
  }
  const SimDisk& image = disks.find("image")->second;
  const bool dirty = image.size() > 80 && load_be<uint32_t>(image.read(4, 4)) == 3 &&
                     (load_be<uint64_t>(image.read(72, 8)) & 1) != 0;
  if (dirty) return {};  // A check of a dirty image finds what a rebuild would put right.
  const std::string path = folder + "/image";
  const std::string said = folder + "/said";
  const auto ask = [&](const std::string& command) {
    const int status = std::system((command + " >" + said + " 2>&1").c_str());
    return WIFEXITED(status) ? WEXITSTATUS(status) : 255;
  };
  const auto words = [&] {
    std::string text;
    if (FILE* file = std::fopen(said.c_str(), "r")) {
      char buffer[2000];
      text.assign(buffer, std::fread(buffer, 1, sizeof buffer, file));
      std::fclose(file);
    }
    return text;
  };
  const int qemu = ask("qemu-img check -f qcow2 " + path);
  if (qemu != 0 && qemu != 3) return cat("qemu-img check says ", qemu, ": ", words());
  const int reference =
      ask("python3 " BYRE_SOURCE_DIR "/tests/reference/qcow2ref.py check " + path);
  if (reference != 0 && reference != 3) return cat("the reference says ", reference, ": ", words());
  return {};
}

RunOptions run_options(const Arguments& arguments) {
  RunOptions options;
  if (arguments.trace) {
    options.sink = [](std::string_view line) {
      std::printf("%.*s\n", static_cast<int>(line.size()), line.data());
    };
  }
  if (!arguments.judge.empty()) {
    options.judge = [&arguments](const SimDisks& disks) { return judge(disks, arguments.judge); };
  }
  options.begun = [](const History&) {
    ++shared()->histories_begun;
    return true;
  };
  return options;
}

/// Plays one seed; true when all is well.
bool play(const Scenario& scenario, uint64_t seed, const Arguments& arguments) {
  shared()->seed = seed;
  shared()->histories_begun = 0;
  Verdict verdict = scenario.play(seed, run_options(arguments));
  Shared& sums = *shared();
  sums.histories += verdict.histories;
  sums.requests += verdict.requests;
  sums.request_errors += verdict.request_errors;
  sums.deliveries += verdict.deliveries;
  sums.cuts += verdict.cuts;
  if (arguments.smoke && verdict.failure.empty()) {
    const Verdict again = scenario.play(seed, run_options(arguments));
    if (again.hash != verdict.hash) verdict.failure = "played twice, it went differently";
  }
  if (arguments.hashes) {
    std::printf("%s %llu %016llx\n", scenario.name.c_str(), static_cast<unsigned long long>(seed),
                static_cast<unsigned long long>(verdict.hash));
  }
  if (verdict.failure.empty()) return true;
  std::printf("FAILED %s --seed %llu\n%s\n", scenario.name.c_str(),
              static_cast<unsigned long long>(seed), verdict.failure.c_str());
  if (verdict.history && !arguments.smoke && arguments.end == arguments.first + 1) {
    std::printf("%s", verdict.history->text().c_str());
  }
  if (!arguments.dump.empty()) dump(verdict.disks, arguments.dump);
  return false;
}

// --- Shrinking ----------------------------------------------------------------------------------

/// Plays `history` in a child; true if it fails there in any way.
bool fails(const History& history) {
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    if (!freopen("/dev/null", "w", stderr)) _exit(3);
    _exit(run_history(history).failure.empty() ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return !WIFEXITED(status) || WEXITSTATUS(status) != 0;
}

/// All steps of a history in one row.
struct Position {
  size_t incarnation;
  size_t client;
  size_t step;
};
std::vector<Position> positions(const History& history) {
  std::vector<Position> all;
  for (size_t l = 0; l < history.incarnations.size(); ++l) {
    for (size_t c = 0; c < history.incarnations[l].clients.size(); ++c) {
      for (size_t s = 0; s < history.incarnations[l].clients[c].size(); ++s)
        all.push_back({l, c, s});
    }
  }
  return all;
}
History without(const History& history, const std::vector<Position>& all, size_t first,
                size_t count) {
  History shorter = history;
  for (size_t i = std::min(first + count, all.size()); i-- > first;) {
    auto& steps = shorter.incarnations[all[i].incarnation].clients[all[i].client];
    steps.erase(steps.begin() + static_cast<ptrdiff_t>(all[i].step));
  }
  return shorter;
}

History shrink(History history) {
  const auto attempt = [&](const History& smaller) {
    if (!fails(smaller)) return false;
    history = smaller;
    return true;
  };
  for (size_t l = history.incarnations.size(); l-- > 0 && history.incarnations.size() > 1;) {
    History smaller = history;
    smaller.incarnations.erase(smaller.incarnations.begin() + static_cast<ptrdiff_t>(l));
    attempt(smaller);
  }
  for (size_t chunk = std::max<size_t>(positions(history).size() / 2, 1); chunk > 0; chunk /= 2) {
    for (size_t first = 0; first < positions(history).size();) {
      if (!attempt(without(history, positions(history), first, chunk))) first += chunk;
    }
  }
  const auto simplify = [&](const auto& change) {
    History smaller = history;
    change(smaller);
    attempt(smaller);
  };
  simplify([](History& h) { h.knobs.delays.late_one_in = 0; });
  simplify([](History& h) { h.knobs.torn = false; });
  simplify([](History& h) { h.knobs.block_size = 1; });
  simplify([](History& h) { h.knobs.backing = Knobs::Backing::none; });
  simplify([](History& h) { h.knobs.contents = 0; });
  simplify([](History& h) { h.knobs.gap = 0; });
  simplify([](History& h) { h.knobs.clusters_free = UINT64_MAX; });
  simplify([](History& h) { h.knobs.staged_max = 64 * 1024; });
  simplify([](History& h) { h.knobs.lazy_refcounts = false; });
  simplify([](History& h) {
    for (Incarnation& incarnation : h.incarnations) {
      std::erase_if(incarnation.clients, [](const auto& client) { return client.empty(); });
    }
  });
  return history;
}

/// The history of `seed` that fails, also when it fails by an assertion.
std::optional<History> failing_history(const Scenario& scenario, uint64_t seed) {
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    Arguments quiet;
    if (!freopen("/dev/null", "w", stdout)) _exit(3);
    _exit(play(scenario, seed, quiet) ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return std::nullopt;
  // The last one that it began.
  uint64_t left = shared()->histories_begun;
  std::optional<History> found;
  RunOptions options;
  options.begun = [&](const History& history) {
    if (--left != 0) return true;
    found = history;
    return false;
  };
  (void)scenario.play(seed, options);
  return found;
}

// --- Many seeds ---------------------------------------------------------------------------------

/// Plays [first, end) in child processes, some seeds each.
bool sweep(const Scenario& scenario, uint64_t first, uint64_t end, const Arguments& arguments) {
  constexpr uint64_t kSeedsAtOnce = 32;
  bool well = true;
  while (first < end && (well || arguments.keep_going)) {
    const uint64_t stop = std::min(end, first + kSeedsAtOnce);
    std::fflush(nullptr);
    const pid_t child = fork();
    if (child == 0) {
      bool fine = true;
      for (uint64_t seed = first; seed < stop && (fine || arguments.keep_going); ++seed) {
        if (!play(scenario, seed, arguments)) {
          fine = false;
          ++shared()->failures;
        }
        std::fflush(nullptr);
      }
      _exit(fine ? 0 : 1);
    }
    int status = 0;
    waitpid(child, &status, 0);
    if (WIFSIGNALED(status)) {
      std::printf("FAILED %s --seed %llu\nsignal %d: %s\n", scenario.name.c_str(),
                  static_cast<unsigned long long>(shared()->seed), WTERMSIG(status),
                  strsignal(WTERMSIG(status)));
      ++shared()->failures;
      first = shared()->seed + 1;
      well = false;
      continue;
    }
    if (WEXITSTATUS(status) != 0) well = false;
    first = stop;
  }
  return well;
}

std::optional<uint64_t> number(std::string_view text) {
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

int usage() {
  std::fprintf(
      stderr,
      "byre-sim --list | --smoke | [--scenario NAME]... --seed N | --seeds A..B\n"
      "         [--trace] [--hashes] [--shrink] [--dump DIR] [--judge DIR] [--keep-going]\n");
  return 2;
}

int main(int argc, char** argv) {
  (void)shared();  // Before the first fork.
  Arguments arguments;
  for (int i = 1; i < argc; ++i) {
    const std::string_view name = argv[i];
    const std::string_view next = i + 1 < argc ? argv[i + 1] : "";
    if (name == "--list") {
      for (const Scenario& s : scenarios())
        std::printf("%-10s %s\n", s.name.c_str(), s.summary.c_str());
      return 0;
    }
    if (name == "--smoke") {
      arguments.smoke = true;
    } else if (name == "--trace") {
      arguments.trace = true;
    } else if (name == "--shrink") {
      arguments.shrink = true;
    } else if (name == "--keep-going") {
      arguments.keep_going = true;
    } else if (name == "--hashes") {
      arguments.hashes = true;
    } else if (name == "--dump") {
      arguments.dump = next;
      ++i;
    } else if (name == "--judge") {
      arguments.judge = next;
      ++i;
    } else if (name == "--scenario") {
      const auto found = std::find_if(scenarios().begin(), scenarios().end(),
                                      [&](const Scenario& s) { return s.name == next; });
      if (found == scenarios().end()) return usage();
      arguments.scenarios.push_back(&*found);
      ++i;
    } else if (name == "--seed") {
      const auto seed = number(next);
      if (!seed) return usage();
      arguments.first = *seed;
      arguments.end = *seed + 1;
      ++i;
    } else if (name == "--seeds") {
      const size_t dots = next.find("..");
      if (dots == std::string_view::npos) return usage();
      const auto first = number(next.substr(0, dots));
      const auto last = number(next.substr(dots + 2));
      if (!first || !last) return usage();
      arguments.first = *first;
      arguments.end = *last + 1;
      ++i;
    } else {
      return usage();
    }
  }
  if (!arguments.smoke && arguments.end == arguments.first) return usage();
  if (arguments.scenarios.empty()) {
    for (const Scenario& s : scenarios()) arguments.scenarios.push_back(&s);
  }

  bool well = true;
  for (const Scenario* scenario : arguments.scenarios) {
    if (arguments.shrink) {
      const std::optional<History> history = failing_history(*scenario, arguments.first);
      if (!history) {
        std::printf("%s --seed %llu does not fail\n", scenario->name.c_str(),
                    static_cast<unsigned long long>(arguments.first));
        continue;
      }
      if (!fails(*history)) {
        std::printf("the history by itself does not fail (an interleaving was enumerated)\n%s",
                    history->text().c_str());
        continue;
      }
      const History small = shrink(*history);
      std::printf("%s", small.text().c_str());
      std::fflush(nullptr);
      RunReport report = run_history(small, run_options(arguments));
      std::printf("%s\n", report.failure.c_str());
      if (!arguments.dump.empty()) dump(report.disks, arguments.dump);
      return 1;
    }
    if (arguments.end == arguments.first + 1 && !arguments.smoke) {
      const bool fine = play(*scenario, arguments.first, arguments);
      shared()->failures += fine ? 0 : 1;
      well &= fine;
    } else if (arguments.smoke) {
      well &= sweep(*scenario, 0, scenario->smoke_seeds, arguments);
    } else {
      well &= sweep(*scenario, arguments.first, arguments.end, arguments);
    }
    const Shared sums = *shared();
    std::printf(
        "%-10s %llu histories, %llu requests (%llu failed), %llu deliveries, %llu cuts, %llu "
        "failures\n",
        scenario->name.c_str(), static_cast<unsigned long long>(sums.histories),
        static_cast<unsigned long long>(sums.requests),
        static_cast<unsigned long long>(sums.request_errors),
        static_cast<unsigned long long>(sums.deliveries),
        static_cast<unsigned long long>(sums.cuts), static_cast<unsigned long long>(sums.failures));
    *shared() = {};
  }
  return well ? 0 : 1;
}

}  // namespace
}  // namespace byre

int main(int argc, char** argv) { return byre::main(argc, argv); }
