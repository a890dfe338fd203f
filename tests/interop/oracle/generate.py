# SPDX-License-Identifier: Apache-2.0
"""Command lines from a seed: each option of each command in at least 20 of them, each pair of options at least once, a tenth
with something damaged or hostile.  The same seed gives the same lines.
"""
import itertools
import random
import re
from dataclasses import dataclass, field

import pool
import table

EACH_OPTION = 20
ODD = 0.05       # How often a value is an odd one.
DAMAGED = 0.1    # How often an image is a damaged one, or none.
NEW_NAMES = ("new.qcow2", "new.qcow2", "new.raw", "new.img", "new")
ODD_NEW_NAMES = ("nodir/new.qcow2", "", "folder", "v3.qcow2", "plain.raw", "n,ew.qcow2", "/dev/full", "json:{}", "nbd://127.0.0.1:1/x")
RESIZES = ("8M", "+1M", "6M", "4M", "2M", "-1M", "+512")
ODD_RESIZES = ("0", "", "-8M", "-100M", "x", "+", "-", "+x", "9E", "+9E", "1000", "+1", "--1M", "4194305")


@dataclass
class Line:
    program: str
    command: str
    words: list                 # Behind the program's name.
    options: tuple = ()         # Of the table, by index.
    damaged: bool = False       # An image that it names is a damaged one, or none.
    odd: bool = False           # It has a value that nobody should give.
    number: int = 0
    files: list = field(default_factory=list)

    def __str__(self):
        return f"{self.program} {' '.join(repr(word) if not word or re.search('[^-A-Za-z0-9_.,=/:+]', word) else word for word in self.words)}"


class Generator:
    def __init__(self, seed):
        self.draw = random.Random(seed)
        self.odd = False   # Has the line that is being made an odd value?

    def image(self, command):
        draw = self.draw
        entries = list(pool.POOL.values())
        if draw.random() < DAMAGED:
            chosen = [one for one in entries if one.kind != "sound"]
        else:
            chosen = [one for one in entries if one.kind == "sound"]
            preferred = [one for one in chosen if one.tags & set(command.prefer)]
            if preferred and draw.random() < 0.6:
                chosen = preferred
        return draw.choice(chosen)

    def value(self, option, image):
        draw = self.draw
        odd = option.odd and (not option.usual or draw.random() < ODD)
        self.odd |= bool(odd)
        return draw.choice(option.odd if odd else option.usual).replace("{format}", image.form).replace("{image}", image.name)

    def spelled(self, option, image):
        """The option as words, in one of the ways that getopt takes."""
        draw = self.draw
        name = draw.choice(option.names)
        if not option.usual and not option.odd:
            return [name]
        value = self.value(option, image)
        way = draw.random()
        if way < 0.2 and name.startswith("--"):
            return [f"{name}={value}"]
        if way < 0.1 and value:
            return [name + value]
        return [name, value]

    def operand(self, word, command, images):
        draw = self.draw
        if "{image}" in word:
            image = images.pop(0) if images else self.image(command)
            return word.replace("{image}", image.name)
        replacements = {"{new}": (NEW_NAMES, ODD_NEW_NAMES), "{size}": (table.SIZES, table.ODD_SIZES),
                        "{resize}": (RESIZES, ODD_RESIZES), "{bitmap}": (table.BITMAPS, table.ODD_BITMAPS)}
        for name, (usual, odd) in replacements.items():
            if name in word:
                is_odd = draw.random() < 2 * ODD
                self.odd |= is_odd
                word = word.replace(name, draw.choice(odd if is_odd else usual))
        return word

    def line(self, command, options):
        """One with these options, by index."""
        draw = self.draw
        self.odd = False
        image = self.image(command)
        groups = [self.spelled(command.options[index], image) for index in options]
        draw.shuffle(groups)
        shape = command.operands[0] if draw.random() < 0.85 else draw.choice(command.operands)
        images = [image]
        operands = [self.operand(word, command, images) for word in shape]
        if any("--image-opts" in group for group in groups) and draw.random() < 0.8:
            operands = [f"driver={image.form},file.driver=file,file.filename={word}" if word == image.name else word
                        for word in operands]
        elif operands and operands[0] == image.name and draw.random() < 0.03:
            operands[0] = f'json:{{"driver":"{image.form}","file":{{"driver":"file","filename":"{image.name}"}}}}'
        # Options before, between and behind the operands.
        words = [word for group in groups for word in group]
        if draw.random() < 0.3 and groups and command.name != "resize":
            cut = draw.randrange(len(groups) + 1)
            words = [w for g in groups[:cut] for w in g] + operands + [w for g in groups[cut:] for w in g]
        else:
            words += operands
        if command.name:
            words.insert(0, command.name)
        line = Line(command.program, command.name or command.program, words, tuple(options), odd=self.odd)
        line.files = pool.files_for(words)
        named = [one for name, one in pool.POOL.items() if any(name in word for word in words)]
        line.damaged = any(one.kind != "sound" for one in named)
        return line

    def more(self, command, first=()):
        """`first`, and others by their weight."""
        options = list(first)
        for index, option in enumerate(command.options):
            if index not in options and self.draw.random() < 0.06 * option.weight:
                options.append(index)
        return options

    def lines_of(self, command):
        count = len(command.options)
        lines = [self.line(command, self.more(command, pair)) for pair in itertools.combinations(range(count), 2)]
        seen = [sum(index in line.options for line in lines) for index in range(count)]
        for index in range(count):
            for _ in range(EACH_OPTION - seen[index]):
                lines.append(self.line(command, self.more(command, (index,))))
        while len(lines) < command.lines:
            lines.append(self.line(command, self.more(command)))
        return lines


def generate(seed):
    """All lines, in an order that mixes the commands."""
    lines = []
    for command in table.COMMANDS:
        lines += Generator(f"{seed} {command.program} {command.name}").lines_of(command)
    random.Random(seed).shuffle(lines)
    for number, line in enumerate(lines):
        line.number = number
    return lines


def coverage(lines):
    """{command: (lines, the least that an option is in, pairs of options that are in none)}"""
    found = {}
    for command in table.COMMANDS:
        name = command.name or command.program
        mine = [set(line.options) for line in lines if line.command == name]
        count = len(command.options)
        least = min(sum(index in options for options in mine) for index in range(count))
        missing = [pair for pair in itertools.combinations(range(count), 2) if not any(set(pair) <= o for o in mine)]
        found[name] = (len(mine), least, len(missing))
    return found
