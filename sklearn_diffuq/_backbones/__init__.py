"""A torch model, frozen and cut into embedding, blocks and readout."""
