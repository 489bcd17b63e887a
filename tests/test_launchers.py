"""Under torchrun and accelerate launch every option of ours reaches nst: they take what they know, also by its beginning."""

import pytest
from accelerate.commands.launch import launch_command_parser
from nst_cli.commands import COMMANDS
from torch.distributed.run import get_args_parser

LAUNCHERS = {"torchrun": get_args_parser, "accelerate launch": launch_command_parser}


def options_of(command):
    return [name for option in COMMANDS[command].load(command).params if not option.hidden for name in option.opts if name[:1] == "-"]


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("command", ["train", "label", "evaluate", "run"])
def test_no_option_of_ours_is_taken_for_one_of_the_launcher(launcher, command):
    parser = LAUNCHERS[launcher]()
    options = options_of(command)
    assert "--store" in options
    for option in options:
        words = [command, option, "VALUE", f"{option}=VALUE"]
        known = parser.parse_args(["--no-python" if launcher == "torchrun" else "--no_python", "nst", *words])
        assert known.training_script_args == words
        theirs = [name for name in parser._option_string_actions if name.startswith(option)]
        assert theirs == [] or option in theirs, f"{option}: a beginning of {theirs}"


def test_the_check_finds_the_former_name_of_start_from():
    with pytest.raises(SystemExit):
        get_args_parser().parse_args(["--no-python", "nst", "train", "--start", "VALUE"])
