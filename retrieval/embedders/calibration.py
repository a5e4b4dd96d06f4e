"""Texts by which a model is quantised: their activations decide the ranges that its integers stand for.

Written for this purpose, of many fields, forms and scripts, and put together to passages of every length that a chunk may
have. They never change without a new name for the precision (`openvino.INT8`), as they change the vectors.
"""

from __future__ import annotations

import random

PASSAGES = 240
MOST_SENTENCES = 9
"""Of one passage: about 250 tokens, the window of the usual small models."""

SENTENCES = (
    "The pump was replaced in March because its seal had worn through after nine thousand hours of work.",
    "Net income for the quarter came to EUR 4.7 million, against EUR 3.9 million in the same quarter of 2023.",
    "Patients who received the higher dose slept longer, but they woke as often as those in the control group.",
    "Either party may end this agreement by giving ninety days' notice in writing to the other.",
    "Preheat the oven to 220 degrees, spread the onions on a tray, and roast them until their edges darken.",
    "The committee met on 14 June 2021, heard three witnesses, and put off its decision until the autumn.",
    "To restore a backup, stop the server, copy the folder back, and start it with the option --recover.",
    "Her grandmother kept the letters in a biscuit tin under the stairs, tied with green string.",
    "A glacier that loses more ice in summer than it gains in winter retreats, whatever the weather of one year.",
    "In 1847 the town had two mills, one church and four hundred people; thirty years later it had a railway.",
    "The function returns None when the key is missing, so the caller has to look before it uses the value.",
    "Mutations in this gene raise the level of cholesterol in the blood and with it the risk of heart disease.",
    "Employees earn two days of leave a month, which are lost unless they are taken before the end of April.",
    "The referee stopped the match for eleven minutes while the lights were repaired, and the score stayed 2-1.",
    "Interest is charged daily on the amount that is outstanding and is added to the account once a month.",
    "Light of shorter wavelength scatters more strongly in air, which is why a clear sky looks blue.",
    "Do not open the housing while the device is connected to mains power: there is danger to life.",
    "The novel begins with a funeral and ends with a wedding, and nobody in between tells the whole truth.",
    "Torque the eight bolts crosswise to 25 Nm, wait for ten minutes, and then torque them again to 40 Nm.",
    "Voters in the coastal districts preferred the harbour plan by 61 to 39 percent; inland it was rejected.",
    "If the alarm sounds at night, leave by the nearest stairs, never by the lift, and gather at the gate.",
    "We trained the network for ninety epochs with a batch of 256 and halved the learning rate at every plateau.",
    "The violin part is marked pianissimo, yet most recordings play it as though the composer had asked for more.",
    "Soil that is bare in winter loses nitrogen to the rain; clover sown in August keeps most of it there.",
    "Order 10-4471: 3 x gasket DN50, 12 x screw M8x40 A2, 1 x manometer 0-16 bar; deliver to gate 4, Tuesday.",
    "Name | Role | Since\nM. Okafor | head of laboratory | 2016\nJ. Lindqvist | technician | 2019\nR. Patel | student | 2024",
    "Region | 2021 | 2022 | 2023\nNorth | 1,204 | 1,377 | 1,401\nSouth | 988 | 1,010 | 1,155\nAbroad | 310 | 295 | 402",
    "def mean(values):\n    if not values:\n        raise ValueError('no values')\n    return sum(values) / len(values)",
    "SELECT name, COUNT(*) FROM orders WHERE placed_at >= '2024-01-01' GROUP BY name HAVING COUNT(*) > 5;",
    "for (int i = 0; i < n; i++) { total += prices[i] * amounts[i]; } return total > limit ? REFUSED : ACCEPTED;",
    'curl -X POST https://api.example.org/v2/items -H \'Authorization: Bearer TOKEN\' -d \'{"name": "lamp", "qty": 2}\'',
    "ERROR 2024-02-29T23:59:58Z worker-7 connection to 10.0.3.12:5432 refused after 3 attempts (errno 111)",
    "What is the notice period, and who has to agree before a contract is renewed?",
    "How do I reset the password of a user whose account is locked?",
    "Which vitamin deficiency causes bleeding gums?",
    "Why was the bridge closed to lorries last winter?",
    "vault temperature limit",
    "travel expenses policy 2024",
    "Chapter 3",
    "Yes.",
    "See also: maintenance schedule, spare parts, contact.",
    "E = mc^2; F = ma; a^2 + b^2 = c^2; P(A|B) = P(B|A) P(A) / P(B).",
    "Contact: +44 20 7946 0018, sales@example.com, Monday to Friday, 8.30 to 17.00.",
    "[1] K. Abe and L. Moreau, On the drying of mortar, J. Build. Mater. 12 (2009), pp. 101-117, doi:10.0000/jbm.12.101.",
    "Der Vertrag verlängert sich um ein Jahr, wenn er nicht drei Monate vor seinem Ende gekündigt wird.",
    "Die Kühlung fiel in der Nacht zum Sonntag aus, weil ein Lager des einzigen Verdichters festgefressen war.",
    "Le conseil municipal a voté la rénovation de l'école, dont le toit fuit depuis l'hiver dernier.",
    "La factura debe pagarse en treinta días; después se cobra un interés del dos por ciento al mes.",
    "Il museo resta chiuso il lunedì, salvo nei giorni festivi, e l'ingresso è gratuito per i bambini.",
    "O relatório mostra que a produção de energia solar duplicou entre 2019 e 2023 no sul do país.",
    "De trein van kwart over acht rijdt door werkzaamheden niet verder dan het volgende station.",
    "Umowa wchodzi w życie z dniem podpisania i obowiązuje przez dwadzieścia cztery miesiące.",
    "Совет директоров одобрил бюджет на следующий год и поручил подготовить отчёт к первому марта.",
    "Η συνεδρίαση αναβλήθηκε για την επόμενη Τρίτη επειδή έλειπαν δύο από τα μέλη της επιτροπής.",
    "تفتح المكتبة أبوابها من الساعة التاسعة صباحا حتى السادسة مساء ما عدا يوم الجمعة.",
    "הספרייה סגורה בימי שישי, ואפשר להחזיר ספרים בתיבה שליד הכניסה.",
    "कार्यालय सोमवार से शुक्रवार तक सुबह नौ बजे से शाम पाँच बजे तक खुला रहता है।",
    "本合同自双方签字之日起生效,有效期为两年,期满前三个月可书面通知终止。",
    "冷凍庫の温度が零下十度を超えたときは、当直の技術者に電話で知らせてください。",
    "회의는 다음 주 화요일 오전 열 시에 삼 층 회의실에서 열립니다.",
    "ห้องสมุดเปิดทุกวันเว้นวันอาทิตย์ ตั้งแต่เก้าโมงเช้าถึงหกโมงเย็น",
    "Toplantı, iki üyenin yokluğu nedeniyle gelecek haftaya ertelendi.",
    "🙂 thanks!! see you at 10:30 → room 4b … (bring the keys)",
    "***  ---  ###  1. 2. 3.  (a) (b) (c)  §12 ¶3  © 2024  50 % ± 2 %",
)


def passages() -> list[str]:
    """Each sentence alone, and then passages of several: the same ones on every machine."""
    rng = random.Random(6)  # noqa: S311 - to mix, not to hide
    made = list(SENTENCES)
    while len(made) < PASSAGES:
        made.append(" ".join(rng.choices(SENTENCES, k=rng.randint(2, MOST_SENTENCES))))
    return made
