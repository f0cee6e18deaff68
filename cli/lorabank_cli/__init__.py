"""The command line of lorabank: parse, call one function of ``lorabank.api``, show what it returned."""
