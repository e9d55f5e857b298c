"""Windows: a task of the Task Scheduler, started at log-on. Follows its XML schema; not run by us.

The defaults of a task would end the daemon after 72 hours and on battery power: both are switched off.
"""

from __future__ import annotations

import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

from daemon import platform
from daemon.service.program import Program
from daemon.service.system import Standing, ask

NAME = "scheduled task"
NAMESPACE = "http://schemas.microsoft.com/windows/2004/02/mit/task"
SETTINGS = {  # in the order of the schema
    "MultipleInstancesPolicy": "IgnoreNew",
    "DisallowStartIfOnBatteries": "false",
    "StopIfGoingOnBatteries": "false",
    "AllowHardTerminate": "true",
    "StartWhenAvailable": "true",
    "RunOnlyIfNetworkAvailable": "false",
    "Enabled": "true",
    "Hidden": "true",
    "WakeToRun": "false",
    "ExecutionTimeLimit": "PT0S",
}
# Each trigger fires anew for ever, and one that runs is left alone (IgnoreNew): a restart on failure ends, and may not
# count an exit code. A minute is the least that the scheduler takes.
AGAIN = {"Interval": "PT1M"}
RESTART = AGAIN | {"Count": "20"}
UNKNOWN_TASK = (0, 1)


def file(program: Program) -> Path:
    return program.environment_file.with_name(f"{program.name}.task.xml")


def render(program: Program) -> str:
    user = platform.user_name()
    task = ET.Element("Task", {"version": "1.2", "xmlns": NAMESPACE})
    _add(ET.SubElement(task, "RegistrationInfo"), {"Description": "homeport: brings trained models home"})
    triggers = ET.SubElement(task, "Triggers")
    for kind, more in (("RegistrationTrigger", {}), ("LogonTrigger", {"UserId": user})):  # `up` comes after the log-on
        trigger = ET.SubElement(triggers, kind)
        _add(trigger, {"Enabled": "true"})
        _add(ET.SubElement(trigger, "Repetition"), AGAIN)
        _add(trigger, more)
    principal = ET.SubElement(ET.SubElement(task, "Principals"), "Principal", {"id": "Author"})
    _add(principal, {"UserId": user, "LogonType": "InteractiveToken", "RunLevel": "LeastPrivilege"})
    settings = ET.SubElement(task, "Settings")
    _add(settings, SETTINGS)
    _add(ET.SubElement(settings, "RestartOnFailure"), RESTART)
    action = ET.SubElement(ET.SubElement(task, "Actions", {"Context": "Author"}), "Exec")
    windowless = Path(program.command[0]).with_name("pythonw.exe")
    _add(action, {"Command": str(windowless), "Arguments": subprocess.list2cmdline(program.command[1:])})
    return ET.tostring(task, encoding="unicode")


def install(program: Program) -> None:
    ask("schtasks", "/Create", "/TN", program.name, "/XML", str(file(program)), "/F")


def start(program: Program) -> None:
    ask("schtasks", "/End", "/TN", program.name, accept=UNKNOWN_TASK)
    ask("schtasks", "/Run", "/TN", program.name)


def stop(program: Program) -> None:
    if file(program).exists():
        ask("schtasks", "/Change", "/TN", program.name, "/DISABLE")
        ask("schtasks", "/End", "/TN", program.name, accept=UNKNOWN_TASK)


def forget(program: Program) -> None:
    ask("schtasks", "/Delete", "/TN", program.name, "/F", accept=UNKNOWN_TASK)


def standing(program: Program) -> Standing:
    said = ask("schtasks", "/Query", "/TN", program.name, "/XML", accept=UNKNOWN_TASK)
    state = ask("schtasks", "/Query", "/TN", program.name, "/FO", "CSV", "/NH", accept=UNKNOWN_TASK)
    enabled = bool(said) and "<Enabled>false</Enabled>" not in said
    return Standing(installed=bool(said), starts_alone=enabled, running="Running" in state)


def log_command(program: Program) -> str:
    return "jobctl logs --daemon"


def _add(to: ET.Element, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        ET.SubElement(to, name).text = text
