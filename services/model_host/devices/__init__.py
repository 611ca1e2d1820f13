"""What a host computes with: CPU and CUDA behind one interface, what their errors mean, whether they compute right."""
