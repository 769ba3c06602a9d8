"""lib_lora: apply and train LoRA / LyCORIS networks. Importing it does nothing."""

__version__ = "0.1.0"
