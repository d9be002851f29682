"""Networks: students and their supernet, teachers, files of either, and taps on their layers."""
