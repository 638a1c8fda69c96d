"""python -m onnxprune"""

from onnxprune.cli import script

if __name__ == "__main__":  # a worker process imports this module again
    script()
