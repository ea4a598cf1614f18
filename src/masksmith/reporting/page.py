from dataclasses import dataclass
@dataclass
class ReportFacts:
    x: int
def write_report(path, facts): return path
