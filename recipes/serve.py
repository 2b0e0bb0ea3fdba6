"""Serves a student and its teacher to OpenAI clients; see docs/serving.md.

python recipes/serve.py --config recipes/configs/arithmetic/serve.yaml
"""

from relay_trl.cli import RecipeParser, check_model, run
from relay_trl.serving.command import run_server
from relay_trl.serving.config import ServingConfig


def main():
    (config,) = RecipeParser(ServingConfig).parse()
    if "://" not in config.student:
        check_model(config.student, "student")
    run_server(config)


if __name__ == "__main__":
    run(main)
