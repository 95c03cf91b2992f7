"""What ``sff-fast demo`` runs on: a small Timer pre-trained on synthetic series, and real weather."""

from sff_fast.demo.shipped import model_path, weather, weather_path

__all__ = ["model_path", "weather", "weather_path"]
