"""tools/activation_to_profile.py on files made here, byte for byte as torch.save writes them."""

import io
import os
import pickle
import struct
import subprocess
import sys
import tempfile
import unittest
import zipfile

TOOL = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../tools/activation_to_profile.py")


class _Global:
    """Pickles as a reference to a name of a module that need not exist."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class _Call:
    def __init__(self, function, args):
        self.function, self.args = function, args


class _Storage:
    def __init__(self, kind, key, count):
        self.id = ("storage", _Global("torch", kind), key, "cpu", count)


class TorchPickler(pickle._Pickler):
    """The opcodes that torch's own pickler writes: GLOBAL by name, BINPERSID for storages."""

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, _Global):
            self.write(b"c" + obj.module.encode() + b"\n" + obj.name.encode() + b"\n")
        elif isinstance(obj, _Call):
            self.save(obj.function)
            self.save(obj.args)
            self.write(b"R")
        elif isinstance(obj, _Storage):
            self.save(obj.id)
            self.write(b"Q")
        else:
            super().save(obj, save_persistent_id)


def torch_file(values, kind="FloatStorage", code="f", shape=None, stride=(1,), offset=0,
               count=None, call=("torch._utils", "_rebuild_tensor_v2")):
    data = struct.pack(f"<{len(values)}{code}", *values)
    count = len(values) if count is None else count
    tensor = _Call(_Global(*call), (_Storage(kind, "0", count), offset, shape or (len(values),),
                                    stride, False, _Call(_Global("collections", "OrderedDict"), ())))
    out = io.BytesIO()
    TorchPickler(out, protocol=2).dump(tensor)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", out.getvalue())
        file.writestr("archive/data/0", data)
        file.writestr("archive/version", "3\n")
    return archive.getvalue()


class Test(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)

    def path(self, name):
        return os.path.join(self.folder.name, name)

    def write(self, name, data):
        with open(self.path(name), "wb") as file:
            file.write(data)

    def run_tool(self, *flags):
        return subprocess.run([sys.executable, TOOL, self.folder.name, self.path("p.gguf"), *flags],
                              capture_output=True, text=True, check=False)

    def shares(self):
        with open(self.path("p.gguf"), "rb") as file:
            data = file.read()
        layers = struct.unpack_from("<Q", data, 8)[0]
        rows = data[-32 * layers:]
        return [struct.unpack_from("<3f", rows, 32 * n) for n in range(layers)]

    def test_layers_come_in_the_order_of_their_numbers(self):
        for number in range(11):  # 10 sorts before 2 as text
            self.write(f"activation_{number}.pt", torch_file([number, 10, 0]))
        result = self.run_tool("--tokens", "20", "--name", "chat")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(self.shares()[10], (0.5, 0.5, 0.0))
        self.assertEqual(self.shares()[2][0], struct.unpack("<f", struct.pack("<f", 0.1))[0])

    def test_every_type_and_a_view(self):
        self.write("activation_0.pt", torch_file([4, 2, 1], "LongStorage", "q"))
        self.write("activation_1.pt", torch_file([4, 2, 1], "HalfStorage", "e"))
        self.write("activation_2.pt", torch_file([9, 4, 9, 2, 9, 1], "IntStorage", "i", shape=(3,),
                                                 stride=(2,), offset=1))
        self.assertEqual(self.run_tool().returncode, 0)
        self.assertEqual(self.shares(), [(1.0, 0.5, 0.25)] * 3)

    def refuses(self, data, why):
        self.write("activation_0.pt", data)
        result = self.run_tool()
        self.assertEqual(result.returncode, 65, why)
        self.assertIn(why, result.stderr)
        self.assertFalse(os.path.exists(self.path("p.gguf")))

    def test_refuses_what_is_not_a_vector_of_counts(self):
        self.refuses(torch_file([1, 2, 3], call=("os", "system")), "os.system")
        self.refuses(torch_file([1, 2, 3, 4], shape=(2, 2), stride=(2, 1)), "shape")
        self.refuses(torch_file([1, 2, 3], shape=(4,)), "outside")
        self.refuses(torch_file([1, 2, 3], offset=1), "outside")
        self.refuses(torch_file([1, 2, 3], count=300, shape=(300,)), "bytes of numbers")
        self.refuses(torch_file([1, -2, 3]), "negative")
        self.refuses(torch_file([1, float("nan"), 3]), "negative or not a number")
        self.refuses(b"not a zip", "cannot be read")

    def test_refuses_gaps_and_unequal_layers(self):
        self.write("activation_0.pt", torch_file([1, 2, 3]))
        self.write("activation_2.pt", torch_file([1, 2, 3]))
        self.assertIn("without a gap", self.run_tool().stderr)
        self.write("activation_1.pt", torch_file([1, 2]))
        self.assertIn("has 2 neurons", self.run_tool().stderr)
        self.write("activation_1.pt", torch_file([1, 2, 30]))
        self.assertIn("fired 30 times", self.run_tool("--tokens", "20").stderr)


if __name__ == "__main__":
    unittest.main()
