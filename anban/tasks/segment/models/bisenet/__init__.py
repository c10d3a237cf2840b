"""BiSeNetV1 in all its ages and in the variants of the training diary: settings, parts, the network."""
