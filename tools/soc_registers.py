"""Make pytest_esp/operations/diagnostics/soc.json from ESP-IDF's headers: where registers lie, and their fields.

    python tools/soc_registers.py $IDF_PATH v6.1

What is taken are names, addresses and bits, for the registers in `_WANTED`. None of these changes anything when it is
read (a FIFO would: reading takes a byte out of it).
"""

import argparse
import json
import re
from pathlib import Path

TARGET = Path(__file__).parent.parent / "pytest_esp" / "operations" / "diagnostics" / "soc.json"

CHIPS = {  # name in the file -> folder of the register headers
    **{
        chip: f"{chip}/register/soc"
        for chip in (
            "esp32", "esp32s2", "esp32s3",
            "esp32c2", "esp32c3", "esp32c5", "esp32c6", "esp32c61", "esp32h2", "esp32h21",
        )
    },
    "esp32p4": "esp32p4/register/hw_ver1/soc",
    "esp32p4-v3": "esp32p4/register/hw_ver3/soc",
}  # fmt: skip

_WANTED = re.compile(
    # why it was reset, what it boots from, what survives a reset
    r"RTC_CNTL_(RESET_STATE|OPTIONS0|STATE0|STORE\d|SLP_REJECT_CAUSE|WAKEUP_STATE|INT_RAW)"
    r"|LP_CLKRST_(RESET_CAUSE|LP_CLK_CONF|FOSC_CNTL)|LP_AON_(STORE\d|SYS_CFG)|LP_SYSTEM_REG_LP_STORE\d|GPIO_STRAP"
    # clocks
    r"|(RTC_CNTL_CLK_CONF|DPORT_CPU_PER_CONF|SYSTEM_CPU_PER_CONF|SYSTEM_SYSCLK_CONF|DPORT_SYSCLK_CONF"
    r"|SYSCON_SYSCLK_CONF|PCR_SYSCLK_CONF|PCR_CPU_FREQ_CONF|PCR_CPU_WAITI_CONF|PCR_TSENS_CLK_CONF|PCR_SARADC_CONF"
    r"|SYSTEM_PERIP_CLK_EN[01]|SYSTEM_PERIP_RST_EN1|DPORT_PERIP_CLK_EN[01]?|HP_SYS_CLKRST_ROOT_CLK_CTRL0"
    r"|HP_SYS_CLKRST_PERI_CLK_CTRL23|LPPERI_CLK_EN)"
    # supply
    r"|RTC_CNTL_BROWN_OUT|LP_ANALOG_PERI_(LP_ANA_)?BOD_MODE[01]_CNTL|LP_ANA_BOD_MODE[01]_CNTL"
    r"|RTC_CNTL|RTC_CNTL_DIG_PWC|RTC_CNTL_BIAS_CONF|RTC_CNTL_SDIO_CONF|RTC_CNTL_FIB_SEL|LP_ANA(LOG_PERI_LP_ANA)?_FIB_ENABLE"
    r"|PMU_HP_ACTIVE_HP_REGULATOR0|PMU_HP_SLEEP_LP_REGULATOR0|PMU_HP_ACTIVE_BIAS"
    # watchdogs
    r"|RTC_CNTL_(WDTCONFIG0|WDTCONFIG1|SWD_CONF)|LP_WDT_(CONFIG0|CONFIG1|SWD_CONFIG)|TIMG_WDTCONFIG0"
    # pins, UART, USB
    r"|GPIO_(OUT|OUT1|ENABLE|ENABLE1|IN|IN1|STATUS|STATUS1)"
    r"|UART_(CLKDIV|STATUS|CONF0|CONF1|FSM_STATUS|CLKDIV_SYNC|CONF0_SYNC)|USB_SERIAL_JTAG_(CONF0|INT_RAW|EP1_CONF)"
    # flash and eFuses
    r"|EFUSE_(STATUS|CLK|CONF|CMD|RD_REPEAT_ERR\d|RD_REPEAT_DATA_ERR\d|RD_RS_ERR\d|RD_RS_DATA_ERR\d|DEC_STATUS|DATE)"
    # temperature
    r"|SENS_SAR_TSENS_CTRL2?|SENS_SAR_PERI_CLK_GATE_CONF|(APB_)?SARADC_(APB_)?TSENS_CTRL2?|TSENS_(CTRL|CTRL2|CLK_CONF)"
)
_ALIASES = {"TIMG": ("TIMERGROUP0", "TIMERG0", "HP_TIMG0"), "TSENS": ("LP_TSENS", "LP_TSENSOR")}
_TWICE = re.compile(r"TIMG_")  # with one for each of two timer groups
_REGISTER = re.compile(
    r"#define\s+(?P<name>[A-Z]\w+?)_REG(?P<per>\(i\))?\s+\(\s*(?P<base>\w+)(?:\(i\))?\s*(?:\+\s*(?P<offset>0x[0-9a-fA-F]+|\d+))?\s*\)"
)
_SHIFT = re.compile(r"#define\s+(?P<name>[A-Z]\w+)_S\s+\(?(?P<value>\d+)\)?\s*$")
_VALUE = re.compile(r"#define\s+(?P<name>[A-Z]\w+)_V\s+\(?(?P<value>0x[0-9a-fA-F]+)U?\)?\s*$")
_BASE = re.compile(
    r"#define\s+(?P<name>DR_REG_\w+?)(?:_BASE)?\s+\(?(?P<value>0x[0-9a-fA-F]+|DR_REG_\w+)(?:\s*\+\s*(?P<plus>0x[0-9a-fA-F]+))?"
)
_REASON = re.compile(r"^\s*RESET_REASON_(?P<name>\w+)\s*=\s*(?P<value>0x[0-9a-fA-F]+)", re.MULTILINE)


def bases(text):
    """Return the base addresses in reg_base.h by name, without DR_REG_ and _BASE."""
    found = {}
    for line in text.splitlines():
        if match := _BASE.match(line):
            value = match["value"]
            number = int(value, 0) if value[0] == "0" else found.get(short(value))
            if number is not None:
                found[short(match["name"])] = number + int(match["plus"] or "0", 0)
    return found


def short(name):
    """Return the name of a base without what all have."""
    return name.removeprefix("DR_REG_").removesuffix("_BASE")


def base_of(name, known):
    """Return the address that the base of a register stands for; the first one of several alike."""
    name = short(name).removeprefix("REG_")
    for key in (name, f"{name}0", *_ALIASES.get(name, ())):
        if key in known:
            return known[key]
    return None


def registers(text, known):
    """Yield name, address and fields of the wanted registers in a header."""
    current, shifts, values, place = None, {}, {}, None
    for line in [*text.splitlines(), "#define END_REG (END + 0)"]:
        if match := _REGISTER.match(line):
            if current is not None and place is not None:
                fields = [[name, shift, values[name].bit_length()] for name, shift in shifts.items() if name in values]
                yield current, place, sorted(fields, key=lambda field: field[1])
            current = match["name"] if _WANTED.fullmatch(match["name"]) else None
            base = base_of(match["base"], known)
            place = None if base is None else base + int(match["offset"] or "0", 0)
            shifts, values = {}, {}
        elif match := _SHIFT.match(line):
            shifts[match["name"]] = int(match["value"])
        elif match := _VALUE.match(line):
            values[match["name"]] = int(match["value"], 0)


def chip(root, folder):
    """Return what the file says of one chip."""
    headers = root / "components" / "soc" / folder
    known = bases((headers / "reg_base.h").read_text())
    rows = {}
    for header in sorted(headers.glob("*_reg.h")):
        for name, address, fields in registers(header.read_text(), known):
            rows.setdefault(address, [name, address, fields])
            if _TWICE.match(name):
                second = [base for key, base in known.items() if re.fullmatch(r"TIM(ERGROUP|ERG|G)1", key)]
                rows[address] = [f"{name}(0)", address, fields]
                for place in (base + address % 0x1000 for base in second):
                    rows[place] = [f"{name}(1)", place, fields]
    reasons = (root / "components" / "soc" / folder.split("/")[0] / "include/soc/reset_reasons.h").read_text()
    named = {}
    for match in _REASON.finditer(reasons):
        named.setdefault(str(int(match["value"], 0)), match["name"])
    places = {value: name for name, value in sorted(known.items(), key=lambda item: len(item[0]), reverse=True)}
    modules = [[name, value] for value, name in sorted(places.items()) if not name.endswith("_END")]
    return {"registers": sorted(rows.values(), key=lambda row: row[1]), "modules": modules, "reset_reasons": named}


def main():
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("idf_path", type=Path)
    parser.add_argument("version", help="of that ESP-IDF, for the file")
    given = parser.parse_args()
    chips = {name: chip(given.idf_path, place) for name, place in CHIPS.items()}
    lines = [f'"source":"ESP-IDF {given.version}, components/soc"']
    for name, facts in chips.items():
        rows = {key: json.dumps(value, separators=(",", ":")) for key, value in facts.items() if key != "registers"}
        rows["registers"] = (
            "[\n" + ",\n".join(json.dumps(row, separators=(",", ":")) for row in facts["registers"]) + "]"
        )
        lines.append(f'"{name}":{{' + ",\n".join(f'"{key}":{row}' for key, row in rows.items()) + "}")
    TARGET.write_text("{" + ",\n".join(lines) + "}\n")


if __name__ == "__main__":
    main()
