"""One file per verb; ``lorabank_cli.main.COMMANDS`` names them."""
