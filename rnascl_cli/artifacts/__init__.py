"""What the stages pass to each other: typed JSON documents and safetensors weights."""
