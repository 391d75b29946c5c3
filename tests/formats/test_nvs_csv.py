"""NVS partitions from CSV files: the bytes of Espressif's generator, and errors that name line and key."""

import argparse
import base64
import csv
import io
import random

import pytest
from esp_idf_nvs_partition_gen import nvs_partition_gen as generator

from pytest_esp.errors import OperationError
from pytest_esp.formats.nvs_pages import make_pages, read_pages

HEAD = "key,type,encoding,value\n"
PEM = "-----BEGIN KEY-----\nMIIB\n\n+/==\n-----END KEY-----\n"
LONGEST = 3967
BLOB = bytes(range(256)) * 20
FILES = {
    "number": b"42\n",
    "below": b" -7 ",
    "text": "Größe\r\nzwei\n".encode(),
    "hex": b"00ff10\n",
    "base64": base64.b64encode(BLOB),
    "blob": BLOB,
    "latin": "Größe".encode("latin-1"),
    "pem": PEM.encode(),
}
SIZE = 0x10000


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the generator's names of files are relative to the working folder
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def by_the_generator(folder, text):
    (folder / "values.csv").write_bytes(text.encode())
    generator.generate(
        argparse.Namespace(size=hex(SIZE), version=2, output="out.bin", outdir=str(folder), input="values.csv")
    )
    return (folder / "out.bin").read_bytes()


def ours(folder, text):
    (folder / "values.csv").write_bytes(text.encode())
    return make_pages(folder / "values.csv", SIZE)


def values_of(image):
    return {entry.key: entry.value for entry in read_pages(image).entries}


@pytest.mark.parametrize(
    "rows",
    [
        f'pem,data,string,"{PEM}"\n',
        f'pem,data,string,"{PEM}"\n'.replace("\n", "\r\n"),
        f'pem,data,binary,"{PEM}"\n',
        'a,data,string,"\n\none\n"\n\n\nb,data,u8,1\n',
        "a,data,string,one\u2028two\x85three\x0cfour\u2029five\x1csix\n",
        'a,data,string,"say ""hello"", world"\n',
        'a,data,string,"one\n# a comment\ntwo"\n',
        "# a comment\na,data,u8,007\n#\nb,data,i16,-007\nc,data,u32, 5 \nd,data,u64,1_000\n",
        "a,data,U8,7\n",
        "a,data,string,\nb,data,hex2bin,\nc,data,base64,\nd,data,binary,\n",
        "a,data,hex2bin, 00ff \nb,data,base64,AAEC\nc,data,base64,AA EC!\nd,data,binary,0102\n",
        "a,data,blob_fill(5;0xff),abc\nb,data,blob_sz_fill(9;0x00),abc\nc,data,blob_fill(3;0x20),\n",
        "a,file,u32,number\nb,file,i8,below\nc,file,u8,number\n",
        "a,file,string,text\nb,file,binary,text\nc,file,hex2bin,hex\nd,file,base64,base64\ne,file,binary,blob\n",
        "a,file,binary,latin\nb,file,string,pem\n",
        f"a,data,string,{'x' * LONGEST}\n",
        f"a,data,u8,1\nb,data,string,{'é' * (LONGEST // 2)}\n",
        "two,namespace,,\na,data,u8,1\nns,namespace,,\nb,data,u8,2\n",
        "sta.ssid,data,string,home\nsta.pswd,data,string,secret12\n",
        "ap.ssid,data,string,home\nap.passwd,data,string,secret12\nap.authmode,data,u8,3\n",
        "a,data,u8,1,surplus,cells\nb,data,u8,2,\n",
        "fünf,data,u8,5\n",
    ],
)
def test_the_same_bytes_as_the_generator(folder, rows):
    text = f"{HEAD}ns,namespace,,\n{rows}"
    made = ours(folder, text)
    assert made == by_the_generator(folder, text)
    assert read_pages(made).problems == ()


def test_columns_in_another_order_and_a_byte_order_mark(folder):
    text = "encoding,value,key,type\n,,ns,namespace\nu8,7,a,data\n"
    assert ours(folder, text) == by_the_generator(folder, text)
    assert ours(folder, "\ufeff" + text) == by_the_generator(folder, text)


def test_a_key_in_pem_keeps_its_lines(folder):
    assert values_of(ours(folder, f'{HEAD}ns,namespace,,\npem,data,string,"{PEM}"\n')) == {"pem": PEM}


def random_rows(source):
    """Rows of valid values, as the csv module writes them."""
    alphabet = 'ab,";\n \u2028é€\t'  # a '#' after a line break would begin a comment
    for number in range(source.randrange(1, 30)):
        kind = source.choice(["u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64", "string", "hex2bin", "base64"])
        data = source.randbytes(source.choice([0, 1, 31, 32, 33, 200, 1500]))
        text = "x" + "".join(source.choices(alphabet, k=source.randrange(60)))
        bits = int(kind[1:]) if kind[0] in "ui" else 8
        low = -(1 << bits - 1) if kind[0] == "i" else 0
        number_text = str(source.randrange(low, low + (1 << bits)))
        value = {"string": text, "hex2bin": data.hex(), "base64": base64.b64encode(data).decode()}
        yield f"key{number}", "data", kind, value.get(kind, number_text)
        if source.random() < 0.2:
            yield f"ns{number}", "namespace", "", ""


def test_200_random_files(folder, capsys):
    source = random.Random(7)
    for _ in range(200):
        out = io.StringIO()
        writer = csv.writer(out, lineterminator=source.choice(["\n", "\r\n"]))
        writer.writerows([HEAD.strip().split(","), ("ns", "namespace", "", ""), *random_rows(source)])
        text = out.getvalue()
        assert ours(folder, text) == by_the_generator(folder, text)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("a,data,u8,256\n", "line 3: the value of 'a' is invalid: it does not fit u8"),
        ("# c\n\na,data,u8,many\n", "line 5: the value of 'a' is not a number"),
        ("a,data,u8\n", "line 3: the value of 'a' is not a number"),
        ("a,file,u8,blob\n", "line 3: the value of 'a' is not a number"),
        ("a,file,string,latin\n", "line 3: the value of 'a' is not UTF-8"),
        ("a,data,base64,AAE\n", "line 3: the value of 'a' is invalid: Incorrect padding"),
        ("a,file,base64,hex\n", "line 3: the value of 'a' is invalid"),
        ("a,data,base64,é\n", "line 3: the value of 'a' is invalid"),
        ("a,data,hex2bin,abc\n", "line 3: the value of 'a' is invalid"),
        ("a,data,hex2bin,zz\n", "line 3: the value of 'a' is invalid"),
        ("a,file,hex2bin,text\n", "line 3: the value of 'a' is invalid"),
        ("a,data,u128,1\n", "line 3: the value of 'a' is invalid: .*Unsupported encoding"),
        ("a,file,blob_fill(5;0xff),hex\n", "line 3: the value of 'a' is invalid"),
        ("a,data,blob_fill(5),x\n", "line 3: the value of 'a' is invalid: .*Invalid encoding format"),
        (f"a,data,string,{'x' * (LONGEST + 1)}\n", "line 3: the value of 'a' has 3968 bytes"),
        (f"a,data,string,{'x' * 3999}\n", "line 3: the value of 'a' has 3999 bytes"),
        (f"a,data,string,{'x' * 4000}\n", "line 3: the value of 'a' has 4000 bytes"),
        (f"a,data,string,{'x' * 200_000}\n", "field larger than field limit"),
        ('a,data,string,"1\n2"\nlong key that is too long,data,u8,1\n', "line 5: invalid key or namespace 'long key"),
        (",data,u8,1\n", "line 3: invalid key or namespace ''"),
        ("a,dato,u8,1\n", "line 3: 'a' has the unknown type 'dato'"),
        ("a,file,binary,missing\n", "line 3: the file of 'a', .*missing, cannot be read: No such file"),
        ("a,file,binary,.\n", "line 3: the file of 'a', .*, cannot be read: Is a directory"),
        ("a,file,binary,x\0y\n", "line 3: the file of 'a', .*, cannot be read"),
        ("".join(f"k{number},file,binary,blob\n" for number in range(19)), "line 1\\d: there is no room for 'k"),
    ],
)
def test_errors_name_line_and_key(folder, rows, words):
    with pytest.raises(OperationError, match=words):
        ours(folder, f"{HEAD}ns,namespace,,\n{rows}")


def test_a_file_that_is_not_utf_8(folder):
    (folder / "latin.csv").write_bytes(f"{HEAD}ns,namespace,,\na,data,string,Größe\n".encode("latin-1"))
    with pytest.raises(OperationError, match=r"latin\.csv cannot be read: 'utf-8' codec can't decode"):
        make_pages(folder / "latin.csv", SIZE)
    with pytest.raises(OperationError, match="is not an NVS CSV file"):
        ours(folder, "name,kind\n")
