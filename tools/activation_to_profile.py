#!/usr/bin/env python3
"""Turns PowerInfer's activation counts into a profile that `isotherm placement import` reads.

    tools/activation_to_profile.py activation/ model.profile.gguf --tokens 400000 --name chat

FOLDER has one file a layer, activation_N.pt, each a vector of how often every neuron fired, saved by
torch.save. They are read without torch and without running what is pickled in them: anything but a
plain tensor of numbers is refused. Files are ordered by the number in their name. The files do not
say how many tokens were counted; without --tokens the largest count stands for a neuron that always
fires, which keeps the order and the proportions.
"""

import argparse
import os
import pickle
import re
import struct
import sys
import zipfile

# torch's storage classes: struct code and size of an element.
STORAGES = {"DoubleStorage": ("d", 8), "FloatStorage": ("f", 4), "HalfStorage": ("e", 2),
            "LongStorage": ("q", 8), "IntStorage": ("i", 4), "ShortStorage": ("h", 2),
            "CharStorage": ("b", 1), "ByteStorage": ("B", 1)}
MAX_NEURONS = 1 << 24
MAX_LAYERS = 1024


class Bad(Exception):
    pass


class Tensor:
    """What torch._utils._rebuild_tensor_v2 is called with, kept instead of called."""

    def __init__(self, storage, offset, size, stride, *rest):
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride


class TensorUnpickler(pickle.Unpickler):
    """Knows a tensor's own classes and nothing else."""

    def find_class(self, module, name):
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return Tensor
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "torch" and name in STORAGES:
            return name
        raise Bad(f"has a pickled {module}.{name}; a plain tensor is wanted")

    def persistent_load(self, what):
        kind, storage, key, _location, count = what
        if kind != "storage" or storage not in STORAGES or not re.fullmatch(r"[0-9]+", key):
            raise Bad(f"refers to {what!r}; a storage of numbers is wanted")
        return storage, key, count


def read_counts(path):
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            pickles = [name for name in names if name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise Bad("is not what torch.save writes since version 1.6")
            folder = pickles[0][:-len("data.pkl")]
            with archive.open(pickles[0]) as file:
                tensor = TensorUnpickler(file).load()
            if not isinstance(tensor, Tensor):
                raise Bad("does not hold one tensor")
            storage, key, count = tensor.storage
            size = tuple(tensor.size)
            if len(size) != 1 or not 1 <= size[0] <= MAX_NEURONS:
                raise Bad(f"has the shape {size}; one row of up to {MAX_NEURONS} is wanted")
            code, width = STORAGES[storage]
            stride = tuple(tensor.stride)[0]
            last = tensor.offset + (size[0] - 1) * stride
            if stride < 1 or tensor.offset < 0 or last >= count:
                raise Bad("has an offset or stride outside its storage")
            data = archive.read(f"{folder}data/{key}")
    except (zipfile.BadZipFile, pickle.UnpicklingError, KeyError, EOFError, TypeError,
            ValueError, AttributeError, IndexError) as error:
        raise Bad(f"cannot be read: {error}") from error
    if len(data) < count * width:
        raise Bad(f"has {len(data)} bytes of numbers, {count * width} were announced")
    values = struct.unpack(f"<{count}{code}", data[:count * width])
    counts = [float(values[tensor.offset + n * stride]) for n in range(size[0])]
    if not all(0 <= value < float("inf") for value in counts):
        raise Bad("has a count that is negative or not a number")
    return counts


def read_folder(folder):
    files = {}
    for name in os.listdir(folder):
        match = re.fullmatch(r"activation_([0-9]+)\.pt", name)
        if match:
            files[int(match.group(1))] = os.path.join(folder, name)
    if not files or sorted(files) != list(range(len(files))) or len(files) > MAX_LAYERS:
        raise Bad(f"{folder}: has {len(files)} files activation_N.pt; N from 0 without a gap is wanted")
    layers = []
    for number in sorted(files):
        try:
            layers.append(read_counts(files[number]))
        except Bad as error:
            raise Bad(f"{files[number]}: {error}") from error
        if len(layers[-1]) != len(layers[0]):
            raise Bad(f"{files[number]}: has {len(layers[-1])} neurons, layer 0 {len(layers[0])}")
    return layers


def gguf_text(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def write_profile(path, name, layers):
    keys = [gguf_text("general.type") + struct.pack("<I", 8) + gguf_text("activation_profile"),
            gguf_text("isotherm.profile.names") + struct.pack("<IIQ", 9, 8, 1) + gguf_text(name),
            gguf_text("isotherm.profile.block_count") + struct.pack("<II", 4, len(layers))]
    row_bytes = (4 * len(layers[0]) + 31) // 32 * 32
    header = b"GGUF" + struct.pack("<IQQ", 3, len(layers), len(keys)) + b"".join(keys)
    for number in range(len(layers)):
        header += gguf_text(f"blk.{number}.activation_frequency.{name}")
        header += struct.pack("<IQIQ", 1, len(layers[0]), 0, number * row_bytes)
    header += b"\0" * (-len(header) % 32)
    with open(path + ".tmp", "wb") as file:
        file.write(header)
        for shares in layers:
            file.write(struct.pack(f"<{len(shares)}f", *shares).ljust(row_bytes, b"\0"))
    os.replace(path + ".tmp", path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", help="with activation_0.pt, activation_1.pt, ..")
    parser.add_argument("profile", help="the .gguf file to write")
    parser.add_argument("--name", default="activation", help="of the profile in the file")
    parser.add_argument("--tokens", type=float, help="that were counted")
    args = parser.parse_args()
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,24}", args.name):
        parser.error("--name takes 1 to 24 letters, digits, dots, dashes or underscores")
    try:
        layers = read_folder(args.folder)
        most = max(max(layer) for layer in layers)
        tokens = args.tokens or most or 1
        if most > tokens:
            raise Bad(f"a neuron fired {most:.0f} times in --tokens {tokens:.0f}")
    except Bad as error:
        print(error, file=sys.stderr)
        sys.exit(65)
    except OSError as error:
        print(error, file=sys.stderr)
        sys.exit(65)
    write_profile(args.profile, args.name, [[n / tokens for n in layer] for layer in layers])
    print(f"{len(layers)} layers of {len(layers[0])} neurons -> {args.profile}")


if __name__ == "__main__":
    main()
