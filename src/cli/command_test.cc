// SPDX-License-Identifier: Apache-2.0
#include "cli/command.h"

#include <gtest/gtest.h>

#include <sstream>

#include "cli/commands.h"
#include "cli/ctl.h"

namespace byre {
namespace {

struct Args {
  std::string image;
  std::optional<std::string> size;
  std::vector<std::string> more;
  std::optional<std::string> format;
  std::optional<uint64_t> start;
  OutputFormat output = OutputFormat::human;
  OptionList options;
  bool quiet = false;
  bool force = false;
};
Task<int> nothing(Session&, Args) { co_return 0; }

const Command<Args> kTwo({
    .name = "two",
    .summary = "Take two operands",
    .args = {operand("IMAGE", &Args::image, "the image"),
             optional_operand("SIZE", &Args::size, "the size"),
             option("-f, --format", "FORMAT", &Args::format, "the format"),
             option("--output", "FORMAT", &Args::output, "human or json"),
             option("-o", "OPTIONS", &Args::options, "more"),
             size_option("-s, --start-offset", "OFFSET", &Args::start, "start offset",
                         "begin there"),
             flag("-q, --quiet", &Args::quiet, "be quiet"),
             flag("--force", &Args::force, "overwrite"), refused("-c, --compress", "not yet"),
             refused("--object", "OBJECT", "no secrets")},
    .run = nothing,
});
const Command<Args> kMany({
    .name = "many",
    .summary = "Take many operands",
    .args = {operand("IMAGE", &Args::image, "the first"),
             operands("MORE", &Args::more, "the rest")},
    .run = nothing,
});
const Command<Args> kSigned({
    .name = "signed",
    .summary = "Take a size with a sign",
    .args = {operand("IMAGE", &Args::image, "the image"),
             optional_operand("SIZE", &Args::size, "the size"),
             flag("-q, --quiet", &Args::quiet, "be quiet")},
    .too_few = "Not enough arguments",
    .last_word_is_operand = true,
    .run = nothing,
});

using Words = std::vector<std::string>;

Args parsed(const AnyCommand& command, const Words& words) {
  Args args;
  const Parsed result = parse(command, words, &args);
  EXPECT_EQ(result.outcome, Parsed::Outcome::run) << result.error;
  return args;
}
Parsed failed(const AnyCommand& command, const Words& words) {
  Args args;
  Parsed result = parse(command, words, &args);
  EXPECT_EQ(result.outcome, Parsed::Outcome::failed);
  return result;
}

TEST(Parse, OptionsMayStandAnywhere) {
  for (const Words& words :
       {Words{"-q", "-f", "raw", "x", "1M"}, Words{"x", "1M", "-q", "-f", "raw"},
        Words{"x", "-qfraw", "1M"}, Words{"--quiet", "x", "--format=raw", "1M"},
        Words{"x", "--form", "raw", "--qui", "1M"}}) {
    const Args args = parsed(kTwo, words);
    EXPECT_EQ(args.image, "x");
    EXPECT_EQ(args.size, "1M");
    EXPECT_EQ(args.format, "raw");
    EXPECT_TRUE(args.quiet);
    EXPECT_FALSE(args.force);
  }
}

TEST(Parse, TwoDashesEndTheOptions) {
  const Args args = parsed(kTwo, {"-q", "--", "-f", "--force"});
  EXPECT_EQ(args.image, "-f");
  EXPECT_EQ(args.size, "--force");
  EXPECT_FALSE(args.force);
}

TEST(Parse, ARepeatedOptionListIsOneList) {
  Args args = parsed(kTwo, {"-o", "a=1,b=2", "x", "-oc=3"});
  EXPECT_EQ(args.options.pairs.size(), 3u);
  EXPECT_EQ(args.options.take("c"), "3");
}

TEST(Parse, ValuesHaveTypes) {
  const Args args = parsed(kTwo, {"--output=json", "-s", "1.5k", "x"});
  EXPECT_EQ(args.output, OutputFormat::json);
  EXPECT_EQ(args.start, 1536u);
  EXPECT_EQ(failed(kTwo, {"--output=xml", "x"}).error,
            "--output expects 'human' or 'json' not 'xml'");
  EXPECT_FALSE(failed(kTwo, {"-s", "abc", "x"}).usage);
}

TEST(Parse, SaysWhatDoesNotFit) {
  EXPECT_EQ(failed(kTwo, {"-z", "x"}).error, "unrecognized option '-z'");
  EXPECT_EQ(failed(kTwo, {"x", "--nix"}).error, "unrecognized option '--nix'");
  EXPECT_EQ(failed(kTwo, {"x", "--fo"}).error, "unrecognized option '--fo'");  // format or force?
  EXPECT_EQ(failed(kTwo, {"x", "-f"}).error, "missing argument for option '-f'");
  EXPECT_EQ(failed(kTwo, {"x", "--format"}).error, "missing argument for option '--format'");
  EXPECT_EQ(failed(kTwo, {}).error, "Expecting IMAGE");
  EXPECT_EQ(failed(kTwo, {"x", "1M", "y"}).error, "Unexpected argument: y");
  EXPECT_EQ(failed(kSigned, {}).error, "Not enough arguments");
  EXPECT_TRUE(failed(kTwo, {}).usage);
}

/// What parse() says under a QEMU name.
std::string qemu_says(const Words& words) {
  Args args;
  const Parsed result = parse(kTwo, words, &args, Dialect::qemu);
  EXPECT_EQ(result.outcome, Parsed::Outcome::failed);
  EXPECT_TRUE(result.usage);
  return result.option ? result.error : "no option: " + result.error;
}

TEST(Parse, UnderAQemuNameGetoptSpeaks) {
  EXPECT_EQ(qemu_says({"-z", "x"}), "invalid option -- 'z'");
  EXPECT_EQ(qemu_says({"-qz", "x"}), "invalid option -- 'z'");
  EXPECT_EQ(qemu_says({"x", "--nix"}), "unrecognized option '--nix'");
  EXPECT_EQ(qemu_says({"x", "--nix=3"}), "unrecognized option '--nix=3'");
  EXPECT_EQ(qemu_says({"x", "-f"}), "option requires an argument -- 'f'");
  EXPECT_EQ(qemu_says({"x", "--format"}), "option '--format' requires an argument");
  EXPECT_EQ(qemu_says({"x", "--forma"}), "option '--format' requires an argument");
  EXPECT_EQ(qemu_says({"x", "--quiet=1"}), "option '--quiet' doesn't allow an argument");
  EXPECT_EQ(qemu_says({"x", "--hel=1"}), "option '--help' doesn't allow an argument");
  EXPECT_EQ(qemu_says({"x", "--fo"}),
            "option '--fo' is ambiguous; possibilities: '--format' '--force'");
  EXPECT_EQ(qemu_says({}), "no option: Expecting IMAGE");
}

TEST(Parse, UnderAQemuNameOwnOptionsAreWrittenInFull) {
  struct Own {
    bool list = false;
    bool follow = false;
    std::string format;
  };
  const Command<Own> command({
      .name = "own",
      .summary = "Has options of its own",
      .args = {option("-f, --format, --source-format", "FORMAT", &Own::format, "of the source"),
               own({flag("-l, --list", &Own::list, "list"),
                    flag("--follow", &Own::follow, "follow")})},
      .run = [](Session&, Own) -> Task<int> { co_return 0; },
  });
  Own args;
  // A beginning means what it means there; byre's own name has two that begin so.
  EXPECT_EQ(parse(command, {"--fo=raw"}, &args, Dialect::qemu).error, "");
  EXPECT_EQ(args.format, "raw");
  EXPECT_EQ(parse(command, {"--source=qcow2"}, &args, Dialect::qemu).error, "");
  EXPECT_EQ(args.format, "qcow2");
  EXPECT_NE(parse(command, {"--fo=raw"}, &args).error, "");
  EXPECT_EQ(parse(command, {"--follow", "--list"}, &args, Dialect::qemu).error, "");
  EXPECT_TRUE(args.follow);
  EXPECT_TRUE(args.list);
  EXPECT_EQ(parse(command, {"-l"}, &args, Dialect::qemu).error, "invalid option -- 'l'");
  EXPECT_EQ(parse(command, {"-l"}, &args).error, "");
}

TEST(Parse, RefusedOptionsSayWhy) {
  for (const Words& words : {Words{"-c", "x"}, Words{"--compress", "x"}, Words{"x", "-qc"}}) {
    EXPECT_EQ(failed(kTwo, words).error, "option '--compress' is not supported: not yet");
  }
  EXPECT_EQ(failed(kTwo, {"--object", "secret,id=a", "x"}).error,
            "option '--object' is not supported: no secrets");
}

TEST(Parse, ManyOperands) {
  const Args args = parsed(kMany, {"a", "b", "c"});
  EXPECT_EQ(args.image, "a");
  EXPECT_EQ(args.more, (Words{"b", "c"}));
  EXPECT_EQ(failed(kMany, {"a"}).error, "Expecting MORE");
}

TEST(Parse, ALastWordWithADashIsNoOption) {
  EXPECT_EQ(parsed(kSigned, {"x", "-1M"}).size, "-1M");
  EXPECT_EQ(parsed(kSigned, {"-q", "x", "-1M"}).size, "-1M");
  EXPECT_EQ(parsed(kSigned, {"x"}).image, "x");
  EXPECT_EQ(parsed(kSigned, {"x", "-1M", "-q"}).size, "-1M");
  EXPECT_TRUE(parsed(kSigned, {"x", "+1M", "-q"}).quiet);
  Args args;
  EXPECT_EQ(parse(kSigned, {"x", "--help"}, &args).outcome, Parsed::Outcome::help);
  // qemu-img takes it right behind the image.
  for (const Words& words : {Words{"-q", "x", "-1M"}, Words{"x", "-1M", "-q"}}) {
    EXPECT_EQ(parse(kSigned, words, &args, Dialect::qemu).outcome, Parsed::Outcome::run);
    EXPECT_EQ(args.size, "-1M");
  }
  for (const Words& words : {Words{"x", "-q", "-1M"}, Words{"-1M", "x"}}) {
    EXPECT_EQ(parse(kSigned, words, &args, Dialect::qemu).error, "invalid option -- '1'");
  }
}

TEST(Parse, EveryCommandTakesJsonAndQuiet) {
  Args args;
  const Parsed both = parse(kMany, {"-q", "a", "b", "--output=json"}, &args);
  EXPECT_EQ(both.outcome, Parsed::Outcome::run);
  EXPECT_TRUE(both.json);
  EXPECT_TRUE(both.quiet);
  const Parsed own = parse(kTwo, {"-q", "a", "--output", "json"}, &args);
  EXPECT_TRUE(own.json);
  EXPECT_FALSE(own.quiet);  // Its own flag says so.
  EXPECT_TRUE(args.quiet);
  for (const Words& words : {Words{"a", "b", "--output=json"}, Words{"-q", "a", "b"}}) {
    EXPECT_EQ(parse(kMany, words, &args, Dialect::qemu).outcome, Parsed::Outcome::failed);
  }
  EXPECT_EQ(parse(kMany, {"a", "b", "--output=xml"}, &args).outcome, Parsed::Outcome::failed);
}

TEST(Parse, AdviceForSlips) {
  EXPECT_EQ(failed(kTwo, {"x", "--fromat=raw"}).advice, "did you mean '--format'?");
  EXPECT_EQ(failed(kTwo, {"x", "--fo"}).advice, "it could be --force, --format");
  EXPECT_EQ(failed(kTwo, {"x", "--nix"}).advice, "");
  EXPECT_EQ(failed(kTwo, {"format", "x", "y"}).advice, "did you mean '--format'?");
  EXPECT_EQ(failed(kTwo, {"x", "-z"}).advice, "");
  EXPECT_EQ(failed(kTwo, {"-q", "10G", "disk"}).error,
            "'disk' is no size; IMAGE comes before SIZE: byre two -q disk 10G");
  EXPECT_EQ(failed(kTwo, {"-q", "10G", "my disk"}).error,
            "'my disk' is no size; IMAGE comes before SIZE");
}

TEST(Parse, HelpIsEverywhere) {
  Args args;
  for (const Words& words : {Words{"-h"}, Words{"--help"}, Words{"x", "-q", "--help"}}) {
    EXPECT_EQ(parse(kTwo, words, &args).outcome, Parsed::Outcome::help);
  }
}

TEST(Help, NamesEveryArgument) {
  const std::string help = help_of(kTwo, "byre");
  EXPECT_TRUE(help_of(kTwo, "qemu-two").starts_with("usage: qemu-two [options] IMAGE [SIZE]\n"));
  EXPECT_TRUE(help.starts_with("usage: byre two [options] IMAGE [SIZE]\nTake two operands.\n"))
      << help;
  for (std::string_view part : {"-f, --format FORMAT", "--output FORMAT", "-q, --quiet", "--force",
                                "known, but refused: --compress --object"}) {
    EXPECT_NE(help.find(part), std::string::npos) << part << "\n" << help;
  }
  // Scripts take what a help of QEMU's names for what a tool can do.
  const std::string theirs = help_of(kTwo, "qemu-img", Dialect::qemu);
  EXPECT_EQ(theirs.find("--compress"), std::string::npos);
  EXPECT_EQ(theirs.find("--object"), std::string::npos);
  EXPECT_EQ(
      synopsis_of(kTwo),
      "two [-f | --format FORMAT] [--output FORMAT] [-o OPTIONS] [-s | --start-offset OFFSET] "
      "[-q | --quiet] [--force] IMAGE [SIZE]");
}

TEST(Help, FitsTheWidth) {
  std::vector<const AnyCommand*> all(byre_commands().begin(), byre_commands().end());
  all.insert(all.end(), ctl_commands().begin(), ctl_commands().end());
  for (const AnyCommand* command : all) {
    for (const size_t width : {size_t{60}, size_t{80}, size_t{200}}) {
      size_t longest = 0;
      std::istringstream help(help_of(*command, "byre", Dialect::byre, width));
      for (std::string line; std::getline(help, line);) longest = std::max(longest, line.size());
      EXPECT_LE(longest, width) << command->name;
    }
  }
}

// What a man page and a completion will be made of.
void expect_described(const AnyCommand& command) {
  EXPECT_FALSE(command.summary.empty()) << command.name;
  EXPECT_FALSE(command.summary.ends_with('.')) << command.name;
  std::string letters;
  std::vector<std::string_view> names;
  for (const Argument& argument : command.args) {
    const std::string where = cat(command.name, " ", argument.spelling());
    EXPECT_FALSE(argument.help.empty()) << where;
    EXPECT_EQ(argument.takes_value() || !argument.is_option(), !argument.metavar.empty()) << where;
    if (!argument.is_option()) continue;
    EXPECT_TRUE(argument.letter != 0 || !argument.name.empty()) << where;
    if (argument.letter != 0) EXPECT_EQ(letters.find(argument.letter), std::string::npos) << where;
    letters += argument.letter;
    const bool taken = std::find(names.begin(), names.end(), argument.name) != names.end();
    if (!argument.name.empty()) EXPECT_FALSE(taken) << where;
    names.push_back(argument.name);
  }
}

TEST(Commands, AreDescribedInFull) {
  std::string_view before;
  for (const AnyCommand* command : byre_commands()) {
    EXPECT_LT(before, command->name) << "by name";
    before = command->name;
    expect_described(*command);
  }
}

TEST(Commands, ThoseOfCtlAreDescribedThereAndByThemselves) {
  const std::string all = help_of(kCtl, "byre", Dialect::byre, 200);
  for (const AnyCommand* command : ctl_commands()) {
    expect_described(*command);
    ASSERT_TRUE(command->name.starts_with("ctl ")) << command->name;
    EXPECT_NE(all.find(command->summary), std::string::npos) << command->name;
    EXPECT_EQ(find_command(ctl_commands(), command->name), command) << "two have one name";
  }
}

TEST(Commands, ThoseOfQemuImgAreOurs) {
  for (const AnyCommand* command : qemu_img_commands()) {
    EXPECT_EQ(find_command(byre_commands(), command->name), command);
  }
  EXPECT_EQ(find_command(byre_commands(), "nix"), nullptr);
}

}  // namespace
}  // namespace byre
