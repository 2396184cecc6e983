"""`safety-neurons`, `python -m safety_neurons`, and `torchrun --nproc-per-node N -m safety_neurons`."""

import signal


def main() -> None:
    """Entry point of the command line."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Ctrl-C during imports, or while the interpreter ends, is no traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from safety_neurons.cli import main as run_command

    run_command()


if __name__ == "__main__":
    main()
